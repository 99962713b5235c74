"""Names: adapters that are called like a module, modules that are misspelt, models that were compiled first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from experts.expert import Expert
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.fingerprint import fingerprint

IDS = torch.arange(3, 43).view(2, 20)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def perturb(model: nn.Module, name: str = "default", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVFLinear):
                layer.svf_z[name].add_(0.3 * torch.randn(layer.svf_z[name].shape, generator=generator))


PARTS = ["mlp", "self_attn", "model", "layers", "0", "q_proj", "lm_head", "embed_tokens"]


@pytest.mark.parametrize("name", [*PARTS, "svf_z", "svf", "svf_", "base_model", "base_layer", "modules_to_save"])
def test_an_adapter_may_be_called_like_any_part_of_a_key(
    name: str, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=4))
    model.add_adapter(name, SVFConfig(rank=4))
    wanted = {}
    for seed, each in enumerate(("default", name)):
        perturb(model, each, seed)
        model.set_adapter(each)
        wanted[each] = logits(model)
    model.save_pretrained(tmp_path)
    base = model.unload()
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 14
    model = PeftModel.from_pretrained(base, str(tmp_path / name), adapter_name=name)
    model.load_adapter(str(tmp_path), "default")
    for each, expected in wanted.items():
        model.set_adapter(each)
        torch.testing.assert_close(logits(model), expected)
    model.delete_adapter(name)
    assert not any(name in layer.svf_z for layer in model.modules() if isinstance(layer, SVFLinear))


def test_adding_an_adapter_called_like_a_module_thaws_nothing(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=4, inference_mode=True))
    model.add_adapter("mlp", SVFConfig(rank=4))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["", "a.b", "math-v1.0", "a/b", "..", "__base__", "keys", "train", "type"])
def test_names_that_no_adapter_can_have_are_refused_at_once(name: str, tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="cannot name an adapter"):
        get_peft_model(tiny_model, SVFConfig(), adapter_name=name)
    assert not any(isinstance(module, SVFLinear) for module in tiny_model.modules())
    model = get_peft_model(tiny_model, SVFConfig())
    with pytest.raises(UserError, match="cannot name an adapter"):
        model.add_adapter(name, SVFConfig())
    assert [*model.peft_config] == ["default"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "gate_porj"]}, "unknown target module 'gate_porj'; did you mean 'gate_proj'"),
        ({"target_modules": ["layers.0.mlp.up_porj"]}, "did you mean 'model.layers.0.mlp.up_proj'"),
        ({"target_modules": ["model.layers.7.mlp.up_proj", "q_proj"]}, "unknown target module 'model.layers.7"),
        (
            {"target_modules": "q_proj"},
            r"nothing that target_modules names \(a string is a regular expression.*\['q_proj'\]",
        ),
        ({"exclude_modules": ["down_porj"]}, "unknown excluded module 'down_porj'; did you mean 'down_proj'"),
        ({"exclude_modules": r".*\.down"}, "matches no module's whole name"),
        (
            {"exclude_modules": ["q_proj", "mlp"]},
            r"'mlp' only leaves out modules of that name.*'\.\*mlp\.\*' leaves out both",
        ),
        ({"exclude_modules": ["layers.0"]}, "'layers.0' only leaves out"),
        ({"rank_pattern": {"q_porj": 4}}, "unknown module in rank_pattern 'q_porj'; did you mean 'q_proj'"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"up_proj": 4}}, "unknown module in rank_pattern 'up_proj'"),
        ({"layers_to_transform": [0, 2]}, "in a layer 2"),
        ({"layers_to_transform": 0, "layers_pattern": "blocks"}, "in a layer 0"),
        ({"modules_to_save": ["lm_haed"]}, "unknown module to save 'lm_haed'; did you mean 'lm_head'"),
    ],
)
def test_a_name_that_means_nothing_is_said_before_anything_is_changed(
    options: dict[str, Any], message: str, tiny_model: LlamaForCausalLM
) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(tiny_model, SVFConfig(**options))
    assert not any(isinstance(module, SVFLinear) for module in tiny_model.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": -1},
        {"rank": 2.5},
        {"rank": True},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": "4"}},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj(": 4}},
        {"target_modules": "(q_proj"},
        {"exclude_modules": "*"},
        {"layers_to_transform": -1},
        {"layers_to_transform": ["0"]},
        {"layers_to_transform": [0], "layers_pattern": "("},
        {"layers_to_transform": [0], "layers_pattern": 5},
        {"target_modules": 5},
        {"target_modules": ["q_proj", 5]},
        {"target_modules": ["all-linear"]},
        {"exclude_modules": 5},
        {"modules_to_save": "norm"},
        {"modules_to_save": [5]},
        {"target_parameters": 5},
        {"rank_pattern": {1: 4}},
        {"trainable_token_indices": "1"},
        {"trainable_token_indices": [-1]},
        {"trainable_token_indices": {"embed_tokens": [True]}},
    ],
)
def test_values_that_cannot_be_meant_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="|".join([*options, "regular expression"])) as refused:
        SVFConfig(**options)
    assert "\n" not in str(refused.value)


def test_an_excluded_name_that_nothing_adapted_is_inside_of_may_stay(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(exclude_modules=["lm_head", "q_proj"]))
    adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, SVFLinear)}
    assert adapted == {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 4},
        {"layers.1.mlp.up_proj": 3, "up_proj": 5},
        {"up_proj": 5, "model.layers.1.mlp.up_proj": 3},
        {r"layers\.\d+\.mlp\..*": 2},
        {"model.layers.0.self_attn.k_proj": 7},
        {"proj": 2, "o_proj": 999},
    ],
)
def test_ranks_are_those_that_lora_has_by_the_same_pattern(
    pattern: dict[str, int], tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    if "proj" not in pattern:
        lora = get_peft_model(tiny_model, LoraConfig(r=9, target_modules="all-linear", rank_pattern=pattern))
    else:  # LoRA only warns of a key that matches nothing
        with pytest.raises(UserError, match="rank_pattern 'proj'"):
            get_peft_model(tiny_model, SVFConfig(rank_pattern=pattern))
        return
    ranks = {n.removesuffix(".lora_A.default"): m.out_features for n, m in lora.named_modules() if "lora_A.d" in n}
    model = get_peft_model(lora.unload(), SVFConfig(rank=9, rank_pattern=pattern))
    found = {n: len(m.svf_z["default"]) for n, m in model.named_modules() if isinstance(m, SVFLinear)}
    assert found == ranks
    perturb(model)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    base = model.unload()
    torch.testing.assert_close(logits(Expert.read(tmp_path).attach(base)), wanted)


def test_a_rank_larger_than_a_matrix_is_all_of_it(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=1000))
    for layer in model.modules():
        if isinstance(layer, SVFLinear):
            assert len(layer.svf_z["default"]) == min(layer.in_features, layer.out_features)


def compile_parts(model: LlamaForCausalLM) -> LlamaForCausalLM:
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(block, backend="eager")
    return model


def compile_whole(model: LlamaForCausalLM) -> Any:
    return torch.compile(model, backend="eager")


def compile_in_place(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compile_whole, compile_parts, compile_in_place])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], ["model.layers.0.mlp.up_proj"]])
@pytest.mark.long
def test_a_model_that_is_compiled_first_saves_what_a_plain_one_loads(
    compiled: Any, targets: Any, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    plain = fingerprint(tiny_model)
    model = get_peft_model(compiled(tiny_model), SVFConfig(rank=4, target_modules=targets, rank_pattern={"up_proj": 3}))
    assert fingerprint(model) == plain
    perturb(model)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    assert not any("_orig_mod" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert "_orig_mod" not in (tmp_path / "adapter_config.json").read_text()
    again = PeftModel.from_pretrained(model.unload(), str(tmp_path))
    torch.testing.assert_close(logits(again), wanted)
    base = again.unload()
    assert fingerprint(base) == plain
    torch.testing.assert_close(logits(Expert.read(tmp_path).attach(base)), wanted)
