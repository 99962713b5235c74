"""The protocol of pass one, and the simplest dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompt, words


class Dispatcher(Protocol):
    """Prompts in, mixture out. Abstaining is a row of zeros: the base answers. Several threads may call it at once."""

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        """One row of weights per prompt, α ≥ 0 and Σα ≤ 1; a prompt's row does not depend on the other prompts."""


@dataclass(frozen=True)
class Fixed:
    """The same mixture whatever the prompt: an expert by name, a `MIX.json`, or the base."""

    mixture: Mixture  # one row

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        return self.mixture.expand(len(prompts))


def question(prompt: str | Chat) -> str:
    """The text that a dispatcher reads: the prompt, or the user's last message in a chat, "" if there is none.

    Raises:
        UserError: if the prompt is neither text nor chat.
    """
    read = read_prompt(prompt)
    if isinstance(read, str):
        return read
    return next((words(message["content"]) for message in reversed(read) if message["role"] == "user"), "")


@dataclass(frozen=True)
class Considered:
    """A classifier's view of B prompts, before it decides.

    Args:
        names: K experts.
        probabilities: [B, K], rows that sum to 1.
        scores: [B, K], how near each expert is to each prompt, on the scale of the threshold.
        threshold: a prompt whose best score is lower belongs to no expert.
        scale: what the scores measure.
    """

    names: tuple[str, ...]
    probabilities: Tensor
    scores: Tensor
    threshold: float
    scale: Literal["cosine", "probability"]

    def decide(self, soft: bool) -> Mixture:
        """The mixture that follows from the scores.

        Args:
            soft: whether the probabilities are the weights; otherwise the most probable expert answers alone.
        """
        best = self.probabilities.max(1)
        alone = torch.zeros_like(self.probabilities).scatter_(1, best.indices[:, None], 1.0)
        known = self.scores.max(1).values >= self.threshold  # [B]; the other rows abstain
        weights = (self.probabilities if soft else alone) * known[:, None]
        return Mixture(self.names, weights, confidence=best.values)


@runtime_checkable
class Classifier(Dispatcher, Protocol):
    """A dispatcher that says how it came to its mixture."""

    soft: bool

    def consider(self, prompts: Sequence[str | Chat]) -> Considered:
        """Considers the prompts; `consider(prompts).decide(soft)` is the dispatcher's mixture."""
