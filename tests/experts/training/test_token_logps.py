"""Log-likelihoods in pieces, from what the head reads, are those of the logits, and so are their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from experts.svf import SVFConfig
from experts.training import token_logps as module
from experts.training.token_logps import Headless, head_of, token_logps

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "initializer_range": 1.0}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_pieces_are_the_whole(bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS", rows * 50)
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=bias).requires_grad_(False)
    tokens, weights = torch.randint(50, (10,)), torch.randn(10)
    states = torch.randn(10, 8, requires_grad=True)
    logits = head(states).log_softmax(1) if rows == 100 else head(states)
    wanted = (logits / 0.7).log_softmax(1)
    own = wanted.gather(1, tokens[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((own * weights).sum(), states)
    logps, entropies = token_logps(head, states, tokens, 0.7)
    torch.testing.assert_close(logps, own)
    torch.testing.assert_close(entropies, -(wanted.exp() * wanted).sum(1))
    assert not entropies.requires_grad
    (got,) = torch.autograd.grad((logps * weights).sum(), states)
    torch.testing.assert_close(got, gradient)


def test_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 20).double().requires_grad_(False)
    states = torch.randn(5, 6, dtype=torch.double, requires_grad=True)
    tokens = torch.randint(20, (5,))
    # Logits are read in float32: steps must be large against its rounding.
    assert torch.autograd.gradcheck(
        lambda h: token_logps(head, h, tokens, 1.3)[0].double(), (states,), eps=1e-2, atol=1e-3, rtol=1e-2
    )


def test_a_model_without_its_head(tiny_model: Any) -> None:
    model = get_peft_model(tiny_model, SVFConfig(target_modules=["q_proj"]))
    head = head_of(tiny_model)
    assert head is not None
    ids = torch.randint(3, 90, (2, 7))
    wanted = model(input_ids=ids).logits
    states: Tensor = Headless(model, head)(input_ids=ids).logits
    assert states.shape == (2, 7, 32)
    torch.testing.assert_close(head(states), wanted)
    assert torch.equal(model(input_ids=ids).logits, wanted), "the head is left as it was"


def test_a_head_that_is_more_than_a_product_is_not_taken(tiny_model: Any) -> None:
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=30.0))
    cohere = CohereForCausalLM(
        CohereConfig(**SIZES, num_attention_heads=2, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    for base in (gemma, cohere):
        assert head_of(base.requires_grad_(False)) is None
    adapted = get_peft_model(tiny_model, LoraConfig(target_modules=["lm_head"]))
    assert head_of(tiny_model) is None
    adapted.unload()
    assert head_of(tiny_model.requires_grad_(False)) is not None
    assert head_of(tiny_model.requires_grad_(True)) is None
