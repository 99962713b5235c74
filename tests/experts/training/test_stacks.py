"""The matrices of a mixture of experts are trained as linear layers are: by REINFORCE and on the next token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experts.expert import Expert
from experts.training.expert import TrainedExpert, train_expert
from experts.training.methods import SVF
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.supervised import NextToken
from experts.training.trainer import LoadedBase
from tests.small_models import small_model

METHOD = SVF(target_modules=[], target_parameters=["gate_up_proj", "down_proj"], rank=4)


@pytest.fixture
def train(tiny_tokenizer: Any, letters: Any, tmp_path: Path) -> Any:
    def train(name: str, options: Any, **kwargs: Any) -> TrainedExpert:
        run = Run(tmp_path / name, {"training": "tiny"}, **kwargs)
        base = LoadedBase(small_model("Mixtral"), tiny_tokenizer, "tiny")
        return train_expert(base, letters, METHOD.config(), options, run)

    return train


def moved(result: TrainedExpert) -> dict[str, torch.Tensor]:
    expert = Expert.read(result.folder)
    assert {z.shape for z in expert.z.values()} == {(4, 4)}
    return {matrix: z - 1 for matrix, z in expert.z.items()}


@pytest.mark.parametrize(
    "parametrization", ["raw", *(pytest.param(p, marks=pytest.mark.slow) for p in ("sigmoid", "shared"))]
)
def test_reinforce(train: Any, options: Reinforce, parametrization: str) -> None:
    options = Reinforce(**{**vars(options), "steps": 2, "parametrization": parametrization})
    assert all(delta.any() for delta in moved(train(parametrization, options)).values())


def test_next_token(train: Any) -> None:
    options = NextToken(learning_rate=0.05, steps=3, sequences_per_step=6, max_new_tokens=3, validate_every=3)
    assert all(delta.any() for delta in moved(train("next_token", options)).values())
