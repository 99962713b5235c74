"""The protocol of pass one, and the simplest dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompt, words


class Dispatcher(Protocol):
    """Prompts in, mixture out. Abstaining is a row of zeros: the base answers. Several threads may ask at once."""

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        """One row of weights a prompt, α ≥ 0 and Σα ≤ 1; a prompt's row does not depend on the other prompts."""


@dataclass(frozen=True)
class Fixed:
    """The same mixture whatever the prompt: an expert by name, a `MIX.json`, or the base."""

    mixture: Mixture  # of one row

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        return self.mixture.expand(len(prompts))


def question(prompt: str | Chat) -> str:
    """What a dispatcher looks at: the prompt, or the text of the user's last message in a chat, "" where none is.

    Raises:
        UserError: if it is neither.
    """
    read = read_prompt(prompt)
    if isinstance(read, str):
        return read
    return next((words(message["content"]) for message in reversed(read) if message["role"] == "user"), "")


def decide(names: Sequence[str], probabilities: Tensor, known: Tensor, soft: bool) -> Mixture:
    """The mixture that a classifier's probabilities ask for.

    Args:
        names: K experts.
        probabilities: [B, K], rows that sum to 1.
        known: [B], False where the prompt belongs to none of them: the row abstains.
        soft: whether the probabilities are the weights; otherwise the most probable expert answers alone.
    """
    best = probabilities.max(1)
    weights = probabilities if soft else torch.zeros_like(probabilities).scatter_(1, best.indices[:, None], 1.0)
    return Mixture(tuple(names), weights * known[:, None], confidence=best.values)
