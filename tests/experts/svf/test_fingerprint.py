from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.svf.fingerprint import FILE, fingerprint, is_other_base, read_sketch, sketch, write_sketch


def test_it_does_not_see_precision_adapters_or_the_vocabulary(tiny_model: LlamaForCausalLM) -> None:
    plain = fingerprint(tiny_model)
    assert fingerprint(tiny_model.bfloat16()) == plain
    tiny_model.resize_token_embeddings(300)
    assert fingerprint(tiny_model) == plain
    svf = get_peft_model(tiny_model, SVFConfig(target_modules=["up_proj"]))
    with torch.no_grad():
        for p in svf.parameters():
            if p.requires_grad:
                p.fill_(2)
    assert fingerprint(svf) == plain
    svf.merge_adapter()
    assert fingerprint(svf) == plain
    svf.unmerge_adapter()
    lora = get_peft_model(svf.unload(), LoraConfig(target_modules="all-linear"))
    assert fingerprint(lora) == plain


def test_it_sees_every_linear_weight(tiny_model: LlamaForCausalLM) -> None:
    plain = fingerprint(tiny_model)
    for name, p in tiny_model.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            old = p.data.clone()
            p.data[0, 0] += 1
            assert fingerprint(tiny_model) != plain, name
            p.data.copy_(old)
    assert fingerprint(tiny_model) == plain


def test_it_does_not_see_that_a_model_is_compiled(tiny_model: LlamaForCausalLM) -> None:
    plain = fingerprint(tiny_model)
    assert fingerprint(torch.compile(tiny_model)) == plain
    tiny_model.model.layers[0] = torch.compile(tiny_model.model.layers[0])
    assert fingerprint(tiny_model) == plain


def in_blocks(weight: Tensor, size: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Each block of a matrix's rows rounded on its own."""
    return rounded(weight.reshape(-1, size)).reshape(weight.shape)


def q4_1(block: Tensor) -> Tensor:
    low, high = block.min(1, keepdim=True).values, block.max(1, keepdim=True).values
    step = (high - low) / 15
    return ((block - low) / step).round() * step + low


def nf4(block: Tensor) -> Tensor:
    # The quantiles of a normal distribution, as in QLoRA's appendix E.
    levels = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.0323, 0.9677, 16))
    levels = levels / levels.abs().max()
    scale = block.abs().max(1, keepdim=True).values
    return levels[torch.bucketize(block / scale, (levels[1:] + levels[:-1]) / 2)] * scale


def int8(row: Tensor) -> Tensor:
    scale = row.abs().max(1, keepdim=True).values / 127
    return (row / scale).round() * scale


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": lambda weight: weight.half().float(),
    "int8": int8,
    "q8_0": lambda weight: in_blocks(weight, 16, int8),
    "q4_1": lambda weight: in_blocks(weight, 16, q4_1),
    "q4_1 in bfloat16": lambda weight: in_blocks(weight, 16, q4_1).bfloat16().float(),
    "nf4": lambda weight: in_blocks(weight, 16, nf4),
}


def change(model: LlamaForCausalLM, changed: Callable[[Tensor], Tensor]) -> LlamaForCausalLM:
    """A copy with other weights in the linear layers of its decoder."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if name.endswith("_proj.weight"):
                weight.copy_(changed(weight))
    return copied


def is_one_base(one: LlamaForCausalLM, other: LlamaForCausalLM) -> bool:
    forth = not is_other_base(fingerprint(one), sketch(one), fingerprint(other), sketch(other))
    back = not is_other_base(fingerprint(other), sketch(other), fingerprint(one), sketch(one))
    assert forth == back
    return forth


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_rounding_is_the_same_base(tiny_model: LlamaForCausalLM, name: str) -> None:
    rounded = change(tiny_model, ROUNDINGS[name])
    assert fingerprint(rounded) != fingerprint(tiny_model)
    assert is_one_base(tiny_model, rounded)


@pytest.mark.parametrize("name", ["float16", "int8", "nf4"])
def test_two_roundings_of_one_model_are_one_base(tiny_model: LlamaForCausalLM, name: str) -> None:
    assert is_one_base(change(tiny_model, ROUNDINGS["q4_1"]), change(tiny_model, ROUNDINGS[name]))


def test_a_bfloat16_checkpoint_in_float16_is_the_same_base(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.bfloat16()
    small = tiny_model.model.layers[0].mlp.up_proj.weight
    small.data[1, 1] = 1.23e-7  # float16 has steps of 6e-8 there
    half = copy.deepcopy(tiny_model).half()
    assert fingerprint(half) != fingerprint(tiny_model)
    assert is_one_base(tiny_model, half)


def trained_on(model: LlamaForCausalLM, steps: int) -> LlamaForCausalLM:
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    for _ in range(steps):
        ids = torch.arange(3, 35)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("steps", [1, 50])
def test_a_model_trained_on_is_another_base(tiny_model: LlamaForCausalLM, steps: int) -> None:
    four_bits = change(tiny_model, ROUNDINGS["q4_1"])
    for base in (tiny_model, four_bits):
        assert not is_one_base(base, trained_on(base, steps))
        assert not is_one_base(base, trained_on(base, steps).half())


@pytest.mark.parametrize(
    "other",
    [
        lambda weight: weight * 1.1,
        lambda weight: weight.flip(0),
        lambda weight: weight + 0.05 * weight.std() * torch.randn_like(weight),
        lambda weight: in_blocks(weight + 0.1 * weight.std() * torch.randn_like(weight), 16, q4_1),
        torch.randn_like,
        torch.zeros_like,
    ],
    ids=["scaled", "permuted", "noise", "noise, then four bits", "another seed", "zeros"],
)
def test_other_weights_are_another_base(tiny_model: LlamaForCausalLM, other: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    assert not is_one_base(tiny_model, change(tiny_model, other))
    assert not is_one_base(change(tiny_model, ROUNDINGS["q4_1"]), change(tiny_model, other))


def test_without_a_sketch_the_fingerprint_alone_decides(tiny_model: LlamaForCausalLM) -> None:
    half = change(tiny_model, ROUNDINGS["float16"])
    assert is_other_base(fingerprint(tiny_model), None, fingerprint(half), sketch(half))
    assert not is_other_base(fingerprint(tiny_model), None, fingerprint(tiny_model), None)


def test_the_sketch_is_small_and_does_not_see_adapters(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    plain = sketch(tiny_model)
    write_sketch(tmp_path, plain)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000
    read = read_sketch(tmp_path)
    assert read is not None
    assert torch.equal(read.runs, plain.runs)
    assert read.float16 == plain.float16
    with_experts = sketch(get_peft_model(tiny_model, SVFConfig()))
    assert torch.equal(with_experts.runs, plain.runs)
    assert with_experts.float16 == plain.float16
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(UserError, match=r"base_sketch\.safetensors is damaged"):
        read_sketch(tmp_path)
    assert read_sketch(tmp_path / "nowhere") is None
