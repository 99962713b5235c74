"""Experts on tiny bases that bitsandbytes keeps in four and eight bits, against the dense base of the same weights."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from experts.exchange.export import best_lora
from experts.expert import Expert
from experts.outside.errors import UserError
from experts.outside.files import cache_folder
from experts.svf import SVFConfig, SVFLinear
from experts.svf.fingerprint import fingerprint, is_rounding, sketch
from experts.svf.quantised import dense_weight, dequantised, shape_of
from selfadapt import load_base

RANK = 4
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [20, 30, 40, 50, 60, 70]])


@pytest.fixture(params=["nf4", "nf4-svd", "int8"])
def quantization(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(tiny_folder: Path, quantization: str) -> Any:
    few = keeping(8) if quantization == "nf4-svd" else quantization  # by its name it keeps all that tiny matrices have
    return load_base(tiny_folder, quantization=few)[0]


def keeping(rank: int) -> dict[str, int]:
    return {"svd_rank": rank}


def dense_copy(base: Any, tiny_model: Any) -> PeftModel:
    """The tiny model with an expert: y = W_q x + U (s·δ·(Vᵀ x)), with W_q dense, and U, s and V of W."""
    model = with_expert(copy.deepcopy(tiny_model))
    for name, module in model.named_modules():
        if isinstance(module, SVFLinear):
            layer = base.get_submodule(name.removeprefix("base_model.model."))
            module.base_layer.weight.data = dequantised(layer).float()
            module.invalidate()
    return model


def with_expert(base: Any, seed: int = 0, name: str = "default", rank: int = RANK, size: float = 0.5) -> PeftModel:
    model: Any = base
    if isinstance(model, PeftModel):
        model.add_adapter(name, SVFConfig(rank=rank))
    else:
        model = get_peft_model(model, SVFConfig(rank=rank), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers_of(model):
        layer.svf_z[name].data.copy_(1 + size * torch.randn(rank, generator=generator))
        layer.invalidate()
    return model


def layers_of(model: nn.Module) -> list[SVFLinear]:
    return [module for module in model.modules() if isinstance(module, SVFLinear)]


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def close(found: Tensor, wanted: Tensor, quantization: str) -> None:
    """Eight bits round what goes into a layer as well, by the largest of a batch."""
    tolerance = 0.05 * wanted.abs().max().item() if quantization == "int8" else 1e-4
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_rows_need_not_be_whole_blocks(tiny_folder: Path, tiny_model: Any) -> None:
    """A block has 64 weights, and rows here have 32 and 48."""
    base, _ = load_base(tiny_folder, quantization="nf4")
    for name, layer in base.named_modules():
        if isinstance(layer, Linear4bit):
            weight, found = tiny_model.get_submodule(name).weight, dequantised(layer)
            assert (found - weight).norm() < 0.12 * weight.norm()  # normal numbers have 0.092
            x = torch.randn(2, 3, layer.in_features, requires_grad=True)
            torch.testing.assert_close(layer(x), x @ found.T)
            (gradient,) = torch.autograd.grad(layer(x).sum(), x)
            torch.testing.assert_close(gradient, found.sum(0).expand_as(x))


def test_triplets_that_are_kept_leave_less_to_round(tiny_folder: Path, tiny_model: Any) -> None:
    bases = [load_base(tiny_folder, quantization=few)[0] for few in ("nf4", keeping(8), keeping(16), "nf4-svd")]
    for name, layer in tiny_model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layers = [base.get_submodule(name) for base in bases]
            errors = [(dequantised(each) - layer.weight).norm().item() for each in layers]
            assert errors == sorted(errors, reverse=True)
            assert errors[-1] < 1e-5 * layer.weight.norm()
            x = torch.randn(2, 3, layer.in_features)
            for each in layers:
                torch.testing.assert_close(each(x), x @ dequantised(each).T)
    torch.testing.assert_close(logits(bases[-1]), logits(tiny_model.eval()))


def test_bits_without_their_triplets_are_not_saved(tiny_folder: Path, tmp_path: Path) -> None:
    base, _ = load_base(tiny_folder, quantization="nf4-svd")
    for drop in (partial(base.save_pretrained, tmp_path / "saved"), base.dequantize):
        with pytest.raises(UserError, match="keeps singular triplets beside its four bits"):
            drop()


@pytest.mark.parametrize("training", [True, False])
def test_ones_are_the_base_bit_for_bit(base: Any, training: bool) -> None:
    wanted = logits(base.train(training))
    model = get_peft_model(base, SVFConfig(rank=RANK)).train(training)
    assert all(layer.quantised for layer in layers_of(model))
    assert torch.equal(logits(model), wanted)
    with model.base_model.mixed(["default"], torch.tensor([[1.0], [0.5], [0.0]])):
        assert torch.equal(logits(model.eval()), logits(base.eval()))


def test_an_expert_is_what_it_is_on_the_dense_base(base: Any, tiny_model: Any, quantization: str) -> None:
    dense = dense_copy(base, tiny_model).eval()
    model = with_expert(base).eval()
    wanted = logits(dense)
    with dense.disable_adapter():
        assert (logits(dense) - wanted).abs().max() > 1
    close(logits(model), wanted, quantization)
    with model.base_model.mixed(["default"], torch.ones(3, 1)):
        close(logits(model), wanted, quantization)
    close(logits(model.train()), wanted, "nf4")  # in training, eight bits are dequantised on a CPU


def test_gradients_are_those_of_the_dense_base(base: Any, tiny_model: Any) -> None:
    found = []
    dense = dense_copy(base, tiny_model)
    for model in (with_expert(base), dense):
        logits(model.eval())  # answers between steps change nothing
        model.train()(IDS, labels=IDS).loss.backward()
        found.append([layer.svf_z["default"].grad for layer in layers_of(model)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert ours.abs().min() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_rows_are_what_they_are_alone(base: Any, quantization: str) -> None:
    model = with_expert(with_expert(base, 1, "a"), 2, "b").eval()
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.4], [0.0, 0.0]])
    with model.base_model.mixed(["a", "b"], weights):
        together = logits(model)
    for row in range(3):
        with model.base_model.mixed(["a", "b"], weights[row : row + 1]):
            close(together[row], logits(model, IDS[row : row + 1])[0], quantization)
    model.set_adapter("a")
    close(together[0], logits(model, IDS[:1])[0], quantization)
    with model.disable_adapter():
        plain = logits(model)[2]
    close(together[2], plain, quantization)
    assert torch.equal(together[2], plain) or quantization == "int8"  # whose base has rows depend on each other


def test_rows_may_be_under_a_lora(base: Any, quantization: str) -> None:
    model = with_expert(base, 1, "a").eval()
    expert, wanted = expert_of(model), logits(model)
    lora, _ = best_lora(model.unload(), expert)
    model = get_peft_model(base, SVFConfig(rank=RANK, target_modules=["q_proj"]), adapter_name="b").eval()
    model.base_model.add_lora("as lora", lora.factors)
    for weights in (torch.ones(3, 1), torch.tensor([[1.0], [1.0], [0.5]])):
        with model.base_model.mixed(["as lora"], weights):
            close(logits(model)[:2], wanted[:2], quantization)


def expert_of(model: PeftModel, name: str = "a") -> Expert:
    plain = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, SVFLinear)}
    z = {matrix: layer.svf_z[name].detach().clone() for matrix, layer in plain.items()}
    return Expert(z, "tiny", fingerprint(model))


def test_nothing_is_merged(base: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from experts.exchange.export import export_merged

    model = with_expert(base, name="a").eval()
    expert, before = expert_of(model), logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload, layers_of(model)[0].merge):
        with pytest.raises(UserError, match="cannot be merged into a 4-bit or 8-bit base"):
            merge()
    assert torch.equal(logits(model), before)
    with pytest.raises(UserError, match="cannot be merged into a 4-bit or 8-bit base"):
        export_merged(expert, model.unload(), tiny_tokenizer, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_as_a_lora_it_is_exact(base: Any, quantization: str, tmp_path: Path) -> None:
    model = with_expert(base, name="a").eval()
    expert, wanted = expert_of(model), logits(model)
    plain = model.unload()
    lora, energy = best_lora(plain, expert)
    assert energy == pytest.approx(1)
    lora.write(tmp_path / "lora")
    close(logits(PeftModel.from_pretrained(plain, str(tmp_path / "lora")).eval()), wanted, quantization)


@pytest.mark.parametrize("config", [SVFConfig(), SVFConfig(rank=32), SVFConfig(target_modules=["q_proj"])])
def test_full_rank_is_refused(base: Any, config: SVFConfig) -> None:
    with pytest.raises(UserError, match=r"factors as large as the dense weights.*limit its rank"):
        get_peft_model(base, config)
    assert not layers_of(base)
    get_peft_model(base, SVFConfig(rank=RANK))


def test_factors_come_from_the_cache(tiny_folder: Path, quantization: str) -> None:
    first, second = (with_expert(load_base(tiny_folder, quantization=quantization)[0]) for _ in range(2))
    kept = len([*(cache_folder() / "svd").iterdir()])
    third = with_expert(load_base(tiny_folder, quantization=quantization)[0])
    assert len([*(cache_folder() / "svd").iterdir()]) == kept
    for layers in zip(*map(layers_of, (first, second, third)), strict=True):
        for name in ("svf_u", "svf_s", "svf_vt"):
            assert all(torch.equal(getattr(layer, name), getattr(layers[0], name)) for layer in layers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_factors_have_the_dtype_of_the_base(tiny_folder: Path, quantization: str, dtype: str) -> None:
    base, _ = load_base(tiny_folder, dtype=dtype, quantization=quantization)
    model = with_expert(base)
    assert {layer.svf_u.dtype for layer in layers_of(model)} == {getattr(torch, dtype)}
    model.train()(IDS, labels=IDS).loss.backward()
    for layer in layers_of(model):
        z = layer.svf_z["default"]
        assert z.dtype == z.grad.dtype == torch.float32
        assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_base_that_is_quantised_on_disk(base: Any, tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    wanted, found = logits(base), fingerprint(base)
    base.save_pretrained(tmp_path / "saved")
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_base(tmp_path / "saved")
    assert fingerprint(again) == found
    torch.testing.assert_close(logits(again), wanted)
    model = with_expert(again)
    for layer in layers_of(model):
        _, s, _ = torch.linalg.svd(dequantised(layer.base_layer).float())
        torch.testing.assert_close(layer.svf_s, s[:RANK], rtol=1e-3, atol=1e-4)
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(layer.svf_z["default"].grad.abs().min() > 0 for layer in layers_of(model))
    with pytest.raises(UserError, match="quantised already"):
        load_base(tmp_path / "saved", quantization="nf4")


def test_a_base_that_is_quantised_as_it_loads_has_the_dense_ones_factors(
    base: Any, tiny_folder: Path, tiny_model: Any
) -> None:
    with_expert(base)
    ours, theirs = layers_of(base), layers_of(with_expert(tiny_model))
    for mine, dense in zip(ours, theirs, strict=True):
        assert torch.equal(mine.svf_u, dense.svf_u)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no longer has what .* was quantised from"):
        ours[0].pristine_weight  # noqa: B018 (a property)


def test_a_quantised_base_is_a_rounding_of_the_dense_one(base: Any, tiny_model: Any) -> None:
    found = fingerprint(base)
    assert found != fingerprint(tiny_model)
    assert fingerprint(with_expert(base)) == found
    assert is_rounding(sketch(tiny_model), sketch(base))
    assert is_rounding(sketch(base), sketch(tiny_model))
    other = copy.deepcopy(tiny_model)
    for parameter in other.parameters():
        parameter.data += 0.05 * parameter.data.std() * torch.randn_like(parameter)
    assert not is_rounding(sketch(other), sketch(base))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_keeps_triplets_is_known_by_what_it_is_a_rounding_of(
    tiny_folder: Path, tiny_model: Any, dtype: str
) -> None:
    base, plain = (load_base(tiny_folder, dtype=dtype, quantization=few)[0] for few in (keeping(8), "nf4"))
    assert len({fingerprint(model) for model in (base, plain, tiny_model)}) == 3
    assert is_rounding(sketch(tiny_model), sketch(base))
    assert torch.equal(sketch(base).runs, sketch(plain).runs)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gpt2_keeps_its_matrices_the_other_way_round(tmp_path: Path, quantization: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    arguments = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**arguments[quantization]), device_map={"": "cpu"}
    ).eval()
    c_fc = base.transformer.h[0].mlp.c_fc
    assert dense_weight(c_fc).shape == shape_of(c_fc) == (128, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = with_expert(base).eval()
    with model.base_model.mixed(["default"], torch.tensor([[1.0], [0.0], [1.0]])):
        mixed = logits(model)
    close(mixed[::2], logits(model)[::2], quantization)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert is_rounding(sketch(dense), sketch(base))


def test_weights_that_were_repacked_are_refused(tiny_folder: Path) -> None:
    base, _ = load_base(tiny_folder, quantization="nf4")
    base.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(UserError, match="repacked the base's 4-bit weights"):
        get_peft_model(base, SVFConfig(rank=RANK))


def test_z_that_was_rounded_is_refused(base: Any) -> None:
    model = with_expert(base)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"z was rounded.*is_loaded_in_4bit"):
        model(IDS)


def test_what_reads_the_weight_itself_is_refused(base: Any) -> None:
    model = with_expert(base)
    layer = layers_of(model)[0]
    with pytest.raises(UserError, match="cannot be merged"):
        layer.weight  # noqa: B018 (a property)
    with (
        model.base_model.mixed(["default"], torch.ones(3, 1)),
        pytest.raises(UserError, match="q_proj is quantised, and the base reads its weight"),
    ):
        layer.weight  # noqa: B018
