"""Constrained decoding: completions that can be nothing but one of a few answers.

A small base seldom says such an answer by itself, so there would be nothing to reinforce. Here the policy is the base's
distribution over the tokens that may still become an answer, in sampling, in the likelihoods that are trained, and in
greedy validation. It is what `dispatch.prompt` scores: a token counts only where it tells answers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from experts.domains.base import Domain

BIAS = 200.0  # nats; far beyond what logits differ by, and small enough to keep their digits in float32


class Constraint:
    """The answers of a domain that knows them all, as tokens, each with the end of the turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, answers: Sequence[str]) -> None:
        text: Any = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        ids = text(list(answers), add_special_tokens=False)["input_ids"]
        self.answers = [(*tokens, text.eos_token_id) for tokens in ids]

    def sequence_bias(self) -> dict[tuple[int, ...], float]:
        """For transformers' `generate`: the more of an answer is complete, the more its last token gets."""
        return {answer[:length]: BIAS * length for answer in self.answers for length in range(1, len(answer) + 1)}

    def bias(self, completions: Tensor, vocabulary: int) -> Tensor:
        """What is added to the logits of `completions` [B, T] (which begin where the answer does): [B, T, V]."""
        bias = torch.zeros(*completions.shape, vocabulary)
        for row, tokens in enumerate(completions.tolist()):
            for t in range(len(tokens)):
                following = {a[t] for a in self.answers if len(a) > t and a[:t] == tuple(tokens[:t])}
                bias[row, t, list(following)] = BIAS
        return bias.to(completions.device)


def constraint_of(domain: Domain, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> Constraint | None:
    """That of a domain with the attribute `answers`, all that a completion may say; None where anything goes."""
    answers: Sequence[str] | None = getattr(domain, "answers", None)
    return Constraint(tokenizer, answers) if answers else None
