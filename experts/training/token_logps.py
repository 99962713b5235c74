"""How likely a base finds the tokens that were sampled, over a large vocabulary: a few hundred tokens at a time.

The logits of a micro-batch are the largest thing in a training step: 16 rows of 200 tokens over a vocabulary of 152,000
take 2 GB, and several times that with what autograd keeps. Here the head runs piece by piece, and the gradient is
computed while a piece is there. Only log π(y_t) needs one, and its direction does not depend on what comes after:

    ∂ log π(y_t) / ∂h_t = (W_{y_t} − Σ_v π(v) W_v) / temperature        with logits W h_t / temperature
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

LOGITS = 1 << 26
"""Numbers in one piece of logits: 256 MB in float32."""

CACHED = 1 << 19
"""Numbers that stay in a processor's cache while they become probabilities: 2 MB in float32."""


class Headless:
    """A model whose outputs hold what its head reads, [B, T, d], in place of logits; `head_of` gives the head."""

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        self.model, self.head = model, head
        self.config = getattr(model, "module", model).config  # perhaps of DDP

    def __call__(self, **inputs: Any) -> Any:
        read: list[Tensor] = []

        def one_is_enough(head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            read.append(args[0])
            return (args[0][:1, :1],)

        hook = self.head.register_forward_pre_hook(one_is_enough)
        try:
            output = self.model(**inputs)
        finally:
            hook.remove()
        output.logits = read[0]
        return output


@torch.no_grad()
def head_of(base: PreTrainedModel) -> nn.Linear | None:
    """The head, if the logits are nothing but its product with what it reads; None if not.

    A base may scale its logits or cap them, so it is run once to find out.
    """
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear or isinstance(base, FSDPModule) or head.weight.requires_grad:
        return None
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda head, args: read.append(args[0]))
    try:
        some = torch.arange(min(8, len(head.weight)), device=base.device)  # not only the padding's row, which may be 0
        logits = cast(Any, base)(input_ids=some[None]).logits
    finally:
        hook.remove()
    return head if len(read) == 1 and torch.equal(head(read[0]).to(logits), logits) else None


def token_logps(head: nn.Linear, states: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log π(y) of tokens [N], and the entropy of π, which has no gradient: both [N], in nats, float32.

    Args:
        states: what the head reads where each token was drawn [N, d].
    """
    logps, entropies = _TokenLogps.apply(states, head, tokens, temperature)
    return logps, entropies


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: nn.Linear, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        weight, bias = head.weight, head.bias  # [V, d], [V]
        logps, entropies, gradients = [], [], []
        at_once = max(1, LOGITS // len(weight))
        in_cache = max(1, CACHED // len(weight)) if weight.device.type == "cpu" else at_once
        for own, right in zip(states.split(at_once), tokens.split(at_once), strict=True):
            logits = F.linear(own, weight, bias)  # [n, V]; later the probabilities, in the head's dtype
            for some, drawn in zip(logits.split(in_cache), right.split(in_cache), strict=True):
                below = some.float()  # the logits minus the largest, at the temperature
                below.sub_(below.amax(1, keepdim=True)).div_(temperature)
                p = below.exp()
                total = p.sum(1)
                logps.append(below.gather(1, drawn[:, None])[:, 0] - total.log())
                entropies.append(total.log() - below.mul_(p).sum(1) / total)
                some.copy_(p.div_(total[:, None]))
            if ctx.needs_input_grad[0]:
                gradients.append((weight[right] - logits @ weight) / temperature)
        ctx.gradients = torch.cat(gradients) if gradients else None
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logps), entropy

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        of_logps: Tensor = outputs[0]
        return (of_logps[:, None] * ctx.gradients).to(ctx.gradients.dtype), None, None, None
