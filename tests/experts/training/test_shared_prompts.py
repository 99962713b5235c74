"""Reading a prompt once for all of its completions changes neither likelihoods, nor gradients, nor samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
)

from experts.svf import SVFConfig
from experts.training.passes import APART
from experts.training.shared_prompts import completion_logits, read, sample

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "mistral, prompts beyond its window": MistralConfig(**SIZES, **HEADS, sliding_window=6),
    "gpt2, whose positions are learned": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, eos_token_id=1
    ),
    "mpt, whose attention falls off with distance": MptConfig(
        vocab_size=64, d_model=32, n_layers=2, n_heads=4, pad_token_id=0, eos_token_id=1
    ),
    "mamba, whose state cannot be shared": MambaConfig(**SIZES, state_size=4),
}
P, L, S, C = 3, 9, 4, 5  # prompts, their tokens, samples of each, tokens of a sample


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(request.param, dtype=torch.float32)
    model = get_peft_model(base, SVFConfig(target_modules="all-linear"))
    with torch.no_grad():
        for z in model.parameters():
            if z.requires_grad:
                z.add_(0.2 * torch.randn(z.shape))
    return model.eval()  # without dropout


@pytest.fixture(params=[0, 3], ids=["prompts of different beginnings", "prompts of one beginning"])
def prompts(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Ids and mask [P, L] of prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 64, (P, L), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 5)):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
        ids[row, padding : padding + request.param] = ids[0, : request.param].clone()
    return ids, mask


@pytest.mark.parametrize(("length", "apart"), [(C, 256), (C, 2), (1, 256)])
def test_likelihoods_and_gradients(
    model: Any, prompts: tuple[Tensor, Tensor], length: int, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(APART, "cpu", apart)
    ids, mask = (each.repeat_interleave(S, 0) for each in prompts)
    completions = torch.randint(2, 64, (P * S, length), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([ids, completions], 1)
    mask = torch.cat([mask, torch.ones_like(completions)], 1)
    if length > 2:
        mask[5, -2:] = mask[8, -4:] = mask[1, -4:] = 0  # samples that ended
    zs = [p for p in model.parameters() if p.requires_grad]

    passes = 0

    def logps_and_gradients(share: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        nonlocal passes
        passes, logps = 0, torch.zeros(P * S, length)
        for rows, logits in completion_logits(model, ids, mask, length, share=share):
            own = completions[rows, : logits.shape[1], None]
            said = logits.log_softmax(-1).gather(-1, own)[..., 0] * mask[rows, -length:][:, : logits.shape[1]]
            passes += 1
            logps = logps.index_add(0, rows, F.pad(said, (0, length - logits.shape[1])))
        return logps, torch.autograd.grad((logps.sum(1) * torch.arange(P * S)).sum(), zs, materialize_grads=True)

    (alone, wanted), (shared, got) = logps_and_gradients(False), logps_and_gradients(True)
    assert passes == (2 if apart == 2 else 1)
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-3 * float(w.abs().max()))


def test_samples(model: Any, prompts: tuple[Tensor, Tensor]) -> None:
    config = GenerationConfig(max_new_tokens=C, do_sample=False, pad_token_id=0, eos_token_id=1)
    ids, mask = prompts
    wanted = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, L:]
    rows = [row[shown.bool()].tolist() for row, shown in zip(ids, mask, strict=True)]
    got = sample(model, rows, S, config)
    for own, row in zip(got, wanted.repeat_interleave(S, 0).tolist(), strict=True):
        assert own == row[: len(own)]
        assert own[-1] == 1 or len(own) == C


def test_a_prompt_is_read_once(tiny_model: Any, prompts: tuple[Tensor, Tensor]) -> None:
    seen = []
    tiny_model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:2]))
    ids, mask = (each.repeat_interleave(S, 0) for each in prompts)
    full = torch.cat([ids, ids[:, :C]], 1)
    [*completion_logits(tiny_model, full, torch.cat([mask, torch.ones_like(ids[:, :C])], 1), C, share=True)]
    K = 3 * (ids[0, 0] == ids[2 * S, 5]).item()  # all prompts begin with
    prefix = [(1, K)] if K else []
    assert [tuple(shape) for shape in seen] == [*prefix, (P, L - K), (P * S, C - 1)]
    assert read(tiny_model, *prompts)[0] is not None
