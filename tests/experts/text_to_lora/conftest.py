from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from experts.text_to_lora.encoder import rescaled, tidy
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter


class LetterEncoder:
    """An encoder without a model: how often each letter of the alphabet occurs."""

    name = "letters"
    size = 27

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        counts = [
            [text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz."] for text in tidy(descriptions)
        ]
        return rescaled(torch.tensor(counts))


@pytest.fixture
def encoder() -> LetterEncoder:
    return LetterEncoder()


@pytest.fixture
def make_writer(tiny_model: Any, encoder: LetterEncoder) -> Any:
    """`make_writer(output, trained=True)` → a small network for the tiny model; trained ones write something."""

    def make_writer(output: LoraOutput | SvfOutput, *, trained: bool = False, **kwargs: Any) -> TextToAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            matrices = read_matrices(tiny_model.config, output.target_modules)
            kwargs = {"latent_size": 16, "head_size": 12, **kwargs}
            writer = TextToAdapter.untrained(output, matrices, encoder, base="tiny", **kwargs)
            if trained:
                for head in writer.network.heads:
                    for parameter in head.parameters():
                        parameter.data.normal_(std=0.1)
        return writer

    return make_writer
