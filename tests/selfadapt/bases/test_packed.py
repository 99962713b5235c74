"""Checkpoints that others have quantised: what their formats say is what is loaded, as dense weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint
from experts.svf.quantised import DenseWeight
from selfadapt import load_base
from selfadapt.bases.quantised import READ
from tests.small_models import small_model

GROUP = 16
GPTQ = {"quant_method": "gptq", "group_size": GROUP, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}


def words(codes: Tensor, bits: int) -> Tensor:
    """As AutoGPTQ and AutoAWQ pack them: int32 [r, c · bits / 32] of codes [r, c], the lowest bits first."""
    each = 32 // bits
    packed = np.zeros((codes.shape[0], codes.shape[1] // each), dtype=np.uint32)
    for place in range(each):
        packed |= codes[:, place::each].numpy().astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32).copy())


def quantise(weight: Tensor, quantization: dict[str, Any], shuffled: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Random codes, zeros and scales for a weight [n, m], as a checkpoint has them; and Wᵀ by the formula."""
    (n, m), bits = weight.shape, quantization["bits"]
    draws = torch.Generator().manual_seed(n + m)
    codes = torch.randint(0, 2**bits, (n, m), generator=draws)
    zeros = torch.randint(0, 2**bits, (n // GROUP, m), generator=draws)
    scales = ((torch.rand(zeros.shape, generator=draws) + 0.5) / 2**bits).half()
    order = torch.randperm(n, generator=draws) if shuffled else torch.arange(n)
    g_idx = order // GROUP
    wanted = torch.empty(n, m)
    for i in range(n):
        for j in range(m):
            wanted[i, j] = scales[g_idx[i], j].float() * (codes[i, j] - zeros[g_idx[i], j])
    if quantization["quant_method"] == "awq":
        mixed = [each.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1) for each in (codes, zeros)]
        parts = dict(zip(("qweight", "qzeros"), (words(each, bits) for each in mixed), strict=True))
    else:
        stored = zeros if "gptq_v2" in quantization.values() else (zeros - 1) % 2**bits
        parts = {"qweight": words(codes.T, bits).T.contiguous(), "qzeros": words(stored, bits), "g_idx": g_idx.int()}
    return parts | {"scales": scales}, wanted.half()


@pytest.fixture
def packed(tiny_folder: Path) -> Callable[..., dict[str, Tensor]]:
    """Packs the checkpoint of the tiny base, in two files; what its linear layers are by the formula."""

    def pack(quantization: dict[str, Any], shuffled: bool = False, transposed: bool = False) -> dict[str, Tensor]:
        tensors, wanted = {}, {}
        for name, weight in load_file(tiny_folder / "model.safetensors").items():
            if weight.dim() < 2 or any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                tensors[name] = weight
                continue
            parts, dense = quantise(weight if transposed else weight.T, quantization, shuffled)
            tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
            wanted[name] = dense if transposed else dense.T
        (tiny_folder / "model.safetensors").unlink()
        halves = [{name: t for i, (name, t) in enumerate(tensors.items()) if i % 2 == half} for half in (0, 1)]
        places = {}
        for number, half in enumerate(halves, 1):
            save_file(half, tiny_folder / (file := f"model-{number:05}-of-00002.safetensors"), {"format": "pt"})
            places |= dict.fromkeys(half, file)
        (tiny_folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        configure(tiny_folder, quantization)
        return wanted

    return pack


def configure(folder: Path, quantization: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


@pytest.mark.parametrize(
    ("quantization", "shuffled"),
    [
        (GPTQ | {"bits": 4}, False),
        (GPTQ | {"bits": 4, "desc_act": True}, True),
        (GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"}, False),
        (GPTQ | {"bits": 4, "format": "gptq_v2"}, False),
        (GPTQ | {"bits": 2, "checkpoint_format": "gptq"}, False),
        (AWQ, False),
    ],
    ids=lambda each: "-".join(map(str, each.values())) if isinstance(each, dict) else "",
)
def test_codes_become_what_they_stand_for(
    packed: Any, tiny_folder: Path, quantization: dict[str, Any], shuffled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = packed(quantization, shuffled)
    base, tokenizer = load_base(tiny_folder)
    assert "once, and keeping the result in" in caplog.text
    state = base.state_dict()
    assert len(wanted) == 14
    assert all(torch.equal(state[name], weight.float()) for name, weight in wanted.items())
    assert not hasattr(base.config, "quantization_config")
    assert tokenizer.chat_template

    caplog.clear()
    again, _ = load_base(tiny_folder, quantization="int8")  # from what is kept, which is dense
    assert "unpacked" not in caplog.text
    layer: Any = again.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, Linear8bitLt)
    assert isinstance(layer.dense_source, DenseWeight)
    assert torch.equal(layer.dense_source.read(), state["model.layers.0.mlp.up_proj.weight"])


def test_another_checkpoint_is_not_taken_for_the_one_that_is_kept(packed: Any, tiny_folder: Path) -> None:
    packed(GPTQ | {"bits": 4})
    before = fingerprint(load_base(tiny_folder)[0])
    file = tiny_folder / "model-00002-of-00002.safetensors"
    tensors = {n: t * 2 if t.dtype == torch.float16 else t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert fingerprint(load_base(tiny_folder)[0]) != before


def test_gpt2_keeps_its_matrices_the_other_way_round(packed: Any, tiny_folder: Path) -> None:
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=4, n_positions=64, n_inner=48)
    (tiny_folder / "model.safetensors").unlink()
    GPT2LMHeadModel(config).save_pretrained(tiny_folder)
    wanted = packed(GPTQ | {"bits": 4}, transposed=True)
    state = load_base(tiny_folder)[0].state_dict()
    assert len(wanted) == 4
    assert all(torch.equal(state[name], weight.float()) for name, weight in wanted.items())


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (GPTQ | {"bits": 3}, "gptq, 3 bits"),
        (GPTQ | {"bits": 4, "checkpoint_format": "marlin"}, "gptq, 4 bits, marlin"),
        (GPTQ | {"bits": 4, "dynamic": {"-:lm_head": {}}}, "gptq, 4 bits, dynamic"),
        (GPTQ, "gptq, None bits"),
        (AWQ | {"version": "gemv"}, "awq, 4 bits, gemv"),
    ],
)
def test_other_ways_of_packing_are_refused(tiny_folder: Path, quantization: dict[str, Any], said: str) -> None:
    configure(tiny_folder, quantization)
    with pytest.raises(UserError, match=rf"is packed in a way that is not supported \({said}\)") as refusal:
        load_base(tiny_folder)
    assert "\n" not in str(refusal.value)


def test_codes_without_scales_are_refused(packed: Any, tiny_folder: Path) -> None:
    packed(GPTQ | {"bits": 4})
    for file in tiny_folder.glob("*.safetensors"):
        save_file({n: t for n, t in load_file(file).items() if "scales" not in n}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the checkpoint has model\.layers\..*, but no model\.layers\..*\.scales"):
        load_base(tiny_folder)


def test_fp8_is_dequantised(tiny_folder: Path) -> None:
    tensors, wanted = {}, {}
    for name, weight in load_file(tiny_folder / "model.safetensors").items():
        if "proj" in name:
            codes, scale = (
                (weight * 100).to(torch.float8_e4m3fn),
                torch.rand(-(-weight.shape[0] // 16), weight.shape[1] // 16),
            )
            tensors |= {name: codes, f"{name}_scale_inv": scale}
            wanted[name] = codes.float() * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
        else:
            tensors[name] = weight
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    configure(tiny_folder, {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"})
    state = load_base(tiny_folder)[0].state_dict()
    assert len(wanted) == 14
    for name, weight in wanted.items():
        torch.testing.assert_close(state[name], weight, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="the checkpoint is quantised already"):
        load_base(tiny_folder, quantization="nf4")


def test_mxfp4_is_dequantised(tiny_folder: Path) -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # E2M1; the highest bit is the sign
    base = small_model("GptOss", intermediate_size=64)
    base.save_pretrained(tiny_folder)
    draws, tensors, wanted = torch.Generator().manual_seed(0), {}, {}
    for name, weight in base.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight.clone()
            continue
        experts, n, m = weight.shape
        codes = torch.randint(0, 16, (experts, m, n // 32, 32), generator=draws)
        scales = torch.randint(120, 130, (experts, m, n // 32), generator=draws)
        tensors[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        tensors[f"{name}_scales"] = scales.to(torch.uint8)
        dense = values[codes % 8] * torch.where(codes < 8, 1.0, -1.0) * 2.0 ** (scales - 127)[..., None]
        wanted[name] = dense.flatten(2).mT
    tensors.pop("lm_head.weight", None) if base.config.tie_word_embeddings else None
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    configure(tiny_folder, {"quant_method": "mxfp4"})
    state = load_base(tiny_folder)[0].state_dict()
    assert wanted
    assert all(torch.equal(state[name], weight) for name, weight in wanted.items())


def test_compressed_tensors_are_dequantised(tiny_folder: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    draws, tensors, wanted = torch.Generator().manual_seed(0), {}, {}
    for name, weight in load_file(tiny_folder / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = weight
            continue
        codes = torch.randint(-8, 8, weight.shape, generator=draws)
        scales = torch.rand(weight.shape[0], weight.shape[1] // GROUP, generator=draws)
        tensors |= {f"{name}_packed": words(codes + 8, 4), f"{name}_scale": scales}
        tensors[f"{name}_shape"] = torch.tensor(weight.shape)
        wanted[name] = codes * scales.repeat_interleave(GROUP, 1)
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    kind = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    configure(tiny_folder, kind | {"config_groups": groups, "ignore": ["lm_head"]})
    state = load_base(tiny_folder)[0].state_dict()
    assert len(wanted) == 14
    for name, weight in wanted.items():
        torch.testing.assert_close(state[name], weight)


OTHERS = """
    aqlm auto-round bitnet eetq fbgemm_fp8 fouroversix fp_quant gemma higgs hqq metal modelopt mxfp8 nvfp4 quanto quark
    sinq spqr torchao vptq
""".split()  # noqa: SIM905


@pytest.mark.parametrize("method", [*OTHERS, None])
def test_other_methods_are_refused_by_name(tiny_folder: Path, method: str | None) -> None:
    configure(tiny_folder, {"bits": 4} if method is None else {"quant_method": method})
    with pytest.raises(UserError) as refusal:
        load_base(tiny_folder)
    said = str(refusal.value)
    assert f"is quantised ({method or 'an unknown kind'}), which is not supported ({', '.join(READ)} are)" in said
    assert "\n" not in said


def test_a_missing_package_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfadapt.bases.quantised.find_spec", lambda name: None)
    configure(tiny_folder, {"quant_method": "compressed-tensors"})
    with pytest.raises(UserError, match=r"\(compressed-tensors\).*not installed: pip install compressed-tensors"):
        load_base(tiny_folder)
