from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from datasets import Dataset

from experts.training.reinforce import Reinforce


@dataclass(frozen=True)
class Letters:
    """A domain that a random model can learn: write letters of the first half of the alphabet."""

    name: str = "letters"
    description: str = "Write letters that come early in the alphabet."

    def load(self, split: str) -> Dataset:
        rows = {"train": range(0, 32), "validation": range(32, 40), "test": range(40, 48)}[split]
        return Dataset.from_list(
            [{"id": f"{split}-{i}", "prompt": [{"role": "user", "content": f"{i:02d}"}], "answer": "a"} for i in rows]
        )

    def reward(self, completions: list[Any], **columns: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return [sum(32 <= ord(letter) < 100 for letter in text) / max(len(text), 1) for text in texts]


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def options() -> Reinforce:
    return Reinforce(
        learning_rate=0.03,
        steps=4,
        prompts_per_step=4,
        samples_per_prompt=4,
        max_new_tokens=6,
        reward="raw",
        validate_every=2,
        validation_size=4,
        micro_batch_size=8,
    )
