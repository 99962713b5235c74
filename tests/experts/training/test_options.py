"""What no training can use is said in one line, before there is anything to clean up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.text_to_lora.adapters import TaskAdapters
from experts.text_to_lora.reconstruction import Reconstruction
from experts.text_to_lora.supervised import Supervised
from experts.training import options as objective
from experts.training.expert import train_expert
from experts.training.options import check_prompts, check_step, check_tokenizer, divide
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.supervised import NextToken
from experts.training.trainer import LoadedBase

REINFORCE = {"learning_rate": 0.01, "steps": 1}


@pytest.mark.parametrize("kind", [Reinforce, NextToken])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", 0.0),
        ("steps", 0),
        ("steps", -1),
        ("steps", 10**20),
        ("max_new_tokens", 0),
        ("validate_every", 0),
        ("validation_size", 0),
        ("patience", 0),
        ("micro_batch_size", 0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_numbers_that_no_training_can_use_are_named(kind: Any, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} must be "):
        kind(**{**REINFORCE, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("kl", -0.1),
        ("kl", math.nan),
        ("wrong_reward", math.nan),
        ("wrong_reward", -math.inf),
        ("prompts_per_step", 0),
        ("samples_per_prompt", 1),
    ],
)
def test_so_are_those_of_reinforce(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} must be "):
        Reinforce(**{**REINFORCE, name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Supervised, "steps", 0),
        (Supervised, "learning_rate", math.nan),
        (Supervised, "warmup", 1.5),
        (Supervised, "tasks_per_step", 0),
        (Supervised, "tasks_per_step", 2**31),
        (Supervised, "micro_batch_size", -1),
        (Supervised, "validation_instances", 0),
        (Supervised, "label_smoothing", -0.1),
        (Supervised, "patience", 0),
        (Reconstruction, "adapters_per_step", 0),
        (Reconstruction, "validation_adapters", -1),
        (TaskAdapters, "instances_per_step", 0),
        (TaskAdapters, "leave_out", -1),
        (TaskAdapters, "learning_rate", 0.0),
        (TaskAdapters, "seed", -1),
    ],
)
def test_so_are_those_of_text_to_lora(kind: Any, name: str, value: float) -> None:
    options = {"steps": 1} | ({"adapters": "folder"} if kind is Reconstruction else {})
    with pytest.raises(UserError, match=f"^{name} (must be|is a share)"):
        kind(**{**options, name: value})


@pytest.mark.parametrize(
    ("rows", "micro_batch_size", "samples", "processes", "parts"),
    [
        (16, 16, 4, 1, (16, 4)),
        (16, 64, 4, 1, (64, 1)),
        (16, 16, 4, 2, (16, 2)),
        (3, 16, 4, 1, (12, 1)),
        (4, 3, 3, 2, (3, 2)),
    ],
)
def test_a_step_is_shared_out_whole(
    monkeypatch: pytest.MonkeyPatch, rows: int, micro_batch_size: int, samples: int, processes: int, parts: Any
) -> None:
    monkeypatch.setattr(objective, "processes", lambda: SimpleNamespace(num_processes=processes))
    assert divide("prompts_per_step", rows, micro_batch_size, sequences=samples) == parts


@pytest.mark.parametrize(
    ("rows", "micro_batch_size", "samples", "processes", "said"),
    [
        (3, 16, 4, 2, "prompts_per_step 3 cannot be divided evenly among 2 processes: choose a multiple of 2"),
        (1, 16, 2, 2, "prompts_per_step 1 cannot be divided evenly among 2"),  # a prompt's samples are one process's
        (16, 24, 4, 1, "micro_batch_size 24 does not divide the 64 sequences .*: choose 16"),
        (5, 3, 1, 1, "micro_batch_size 3 does not divide the 5 sequences .*: choose 1"),
    ],
)
def test_a_step_that_does_not_divide_is_refused(
    monkeypatch: pytest.MonkeyPatch, rows: int, micro_batch_size: int, samples: int, processes: int, said: str
) -> None:
    monkeypatch.setattr(objective, "processes", lambda: SimpleNamespace(num_processes=processes))
    with pytest.raises(UserError, match=said):
        divide("prompts_per_step", rows, micro_batch_size, sequences=samples)


def test_a_step_needs_as_many_rows() -> None:
    options = Reinforce(learning_rate=0.01, steps=1, prompts_per_step=16)
    assert check_step(options, 16) == (16, 4)
    with pytest.raises(UserError, match="prompts_per_step is 16, but there are only 10 rows"):
        check_step(options, 10)
    with pytest.raises(UserError, match="sequences_per_step is 64, but there are only 10 rows"):
        check_step(NextToken(learning_rate=0.01, steps=1), 10)
    for tracker, said in (
        ("tensorbord", "unknown tracker in report_to 'tensorbord'; did you mean 'tensorboard'"),
        ("os", "unknown tracker"),  # which is installed, and no tracker
        ("no.such", "unknown tracker"),
        ("neptune", "neptune is not installed"),
    ):
        with pytest.raises(UserError, match=said):
            check_step(replace(options, report_to=tracker), 16)


def test_a_tokenizer_needs_an_end_and_a_padding_token(tiny_tokenizer: Any) -> None:
    check_tokenizer(tiny_tokenizer)
    for name, what in (("eos_token", "end"), ("pad_token", "padding")):
        lacking = type(tiny_tokenizer)(
            tokenizer_object=tiny_tokenizer._tokenizer, **{**tiny_tokenizer.special_tokens_map, name: None}
        )
        with pytest.raises(UserError, match=f"no {what} token.*set its {name}"):
            check_tokenizer(lacking)


def test_prompts_leave_room_for_their_answers(tiny_model: Any, tiny_tokenizer: Any, letters: Any) -> None:
    rows = letters.load("train")
    tokens = len(tiny_tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True)["input_ids"])
    config = tiny_model.config
    config.max_position_embeddings = tokens + 6
    check_prompts(config, tiny_tokenizer, [rows], 6)
    with pytest.raises(UserError, match=rf"the prompt of row train-0 has {tokens} tokens, and with 7 new ones"):
        check_prompts(config, tiny_tokenizer, [rows], 7)


@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_run_with_one_prompt_too_long_does_not_begin(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path, kind: str, split: str
) -> None:
    class Long(type(letters)):  # type: ignore[misc]
        def load(self, which: str) -> Dataset:
            rows = super().load(which).to_list()
            if which == split:
                rows[3]["prompt"][0]["content"] = "a" * 600
            return Dataset.from_list(rows)

    base = tiny_model
    if kind == "GPT-2":
        base = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=4, n_positions=512)
        )
    loaded = LoadedBase(base, tiny_tokenizer, "tiny")
    with pytest.raises(UserError, match=f"the prompt of row {split}-"):
        train_expert(loaded, Long(), SVFConfig(), options, Run(tmp_path / "expert", {}))
    assert list(tmp_path.iterdir()) == []
