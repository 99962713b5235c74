"""The protocol of pass one, and the simplest dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from experts.engine import Chat
from experts.mixture import Mixture


class Dispatcher(Protocol):
    """Prompts in, mixture out. Abstaining is a row of zeros: the base answers."""

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        """One row of weights a prompt, α ≥ 0 and Σα ≤ 1; a prompt's row does not depend on the other prompts."""


@dataclass(frozen=True)
class Fixed:
    """The same mixture whatever the prompt: an expert by name, a `MIX.json`, or the base."""

    mixture: Mixture  # of one row

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        return self.mixture.expand(len(prompts))
