"""Constrained decoding: completions that can only be one of a few answers.

A small base seldom gives such an answer by itself, so there would be nothing to reinforce. Here the policy is the
base's distribution over the tokens that can still lead to an answer: in sampling, in the likelihoods that are trained,
and in greedy validation. `dispatch.prompt` scores the same: a token counts only where it tells answers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, ProcessorMixin

from experts.domains.base import Domain, answers_of
from experts.outside.errors import UserError

MASKED = -1e4  # nats; far more than logits differ by, and finite, so that entropies stay finite


class Constraint:
    """All the answers that a domain allows, as tokens, each with the end of the turn.

    Raises:
        UserError: if the tokenizer has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, answers: Sequence[str]) -> None:
        text: Any = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
        if text.eos_token_id is None:
            raise UserError("the tokenizer has no end token, so answers would never end; give it an eos_token")
        ids = text(list(answers), add_special_tokens=False)["input_ids"]
        self.answers = [(*tokens, text.eos_token_id) for tokens in ids]
        following: dict[tuple[int, ...], set[int]] = {}
        for answer in self.answers:
            for length, token in enumerate(answer):
                following.setdefault(answer[:length], set()).add(token)
        self._following = {begun: sorted(tokens) for begun, tokens in following.items()}

    def bias(self, completions: Tensor, vocabulary: int) -> Tensor:
        """What to add to the logits of `completions` [B, T], which begin where the answer does: [B, T, V]."""
        rows = [[tokens[:t] for t in range(len(tokens))] for tokens in completions.tolist()]
        return torch.stack([self.masks(row, vocabulary) for row in rows]).to(completions.device)

    def masks(self, begun: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
        """0 if a token may follow what has been written, else `MASKED`: [B, V]. Anything may follow an end."""
        masks = torch.full((len(begun), vocabulary), MASKED)
        for mask, tokens in zip(masks, begun, strict=True):
            mask[self._following.get(tuple(tokens), slice(None))] = 0
        return masks

    def processor(self, start: int) -> LogitsProcessor:
        """The same for transformers' `generate`, if completions begin after `start` tokens of prompt."""
        return _Processor(self, start)


class _Processor(LogitsProcessor):
    def __init__(self, constraint: Constraint, start: int) -> None:
        self.constraint, self.start = constraint, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        return scores + self.constraint.masks(input_ids[:, self.start :].tolist(), scores.shape[1]).to(scores)


def constraint_of(
    domain: Domain, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, max_new_tokens: int
) -> Constraint | None:
    """The constraint of a domain that has only a few answers; None if the model may write anything.

    Raises:
        UserError: if the tokenizer has no end token, or an answer does not fit into `max_new_tokens`.
    """
    if not (answers := answers_of(domain)):
        return None
    constraint = Constraint(tokenizer, answers)
    if max_new_tokens < (longest := max(map(len, constraint.answers))):
        raise UserError(
            f"the longest answer of {domain.name} has {longest} tokens, including the end token: "
            f"max_new_tokens must be at least that, not {max_new_tokens}"
        )
    return constraint
