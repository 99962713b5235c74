"""Next-token prediction: what is trained on, that it is learned, and that stopping it anywhere loses nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.training import expert
from experts.training.expert import TrainedExpert, train_expert
from experts.training.methods import SVF, LoRA
from experts.training.run import Interrupted, Run
from experts.training.supervised import NextToken, collate, make_next_token_trainer, token_rows
from experts.training.trainer import LoadedBase, StopOnInterrupt


@dataclass(frozen=True)
class Echo:
    """Repeat the letter of the prompt."""

    name: str = "echo"
    description: str = "Repeat a letter."

    def load(self, split: str) -> Dataset:
        letters = {"train": "abcdefgh", "validation": "ijkl", "test": "mnop"}[split]
        return Dataset.from_list([{"id": x, "prompt": [{"role": "user", "content": x}], "answer": x} for x in letters])

    def reward(self, completions: list[Any], **columns: Any) -> list[float]:
        return [float(text == answer) for text, answer in zip(completions, columns["answer"], strict=True)]


@pytest.fixture
def options() -> NextToken:
    return NextToken(
        learning_rate=0.05, steps=6, sequences_per_step=6, max_new_tokens=3, validate_every=2, micro_batch_size=3
    )


@pytest.fixture
def train(tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """`train(name, options)` trains on a fresh copy of the tiny base into `tmp_path/name`."""

    def train(name: str, options: NextToken, method: Any = None, **kwargs: Any) -> TrainedExpert:
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        adapter = (method or SVF()).config()
        run = Run(tmp_path / name, {"training": "tiny"}, **kwargs)
        return train_expert(LoadedBase(base, tiny_tokenizer, str(tiny_folder)), Echo(), adapter, options, run)

    return train


def log_of(folder: Path) -> list[dict[str, Any]]:
    timed = {"seconds", "tokens_per_second"}
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def test_the_loss_is_that_of_answer_and_end_token_only(
    tiny_model: Any, tiny_tokenizer: Any, options: NextToken, tmp_path: Path
) -> None:
    trainer = make_next_token_trainer(
        LoadedBase(tiny_model, tiny_tokenizer, "tiny"), Echo(), SVFConfig(), options, tmp_path
    )
    row = trainer.train_dataset[0]
    prompt = tokenize(tiny_tokenizer, ["a"])[0]
    answer = [*tiny_tokenizer("a")["input_ids"], tiny_tokenizer.eos_token_id]
    assert row["input_ids"] == prompt + answer  # as it is for generation, and no second mark of its own
    assert row["labels"] == [-100] * len(prompt) + answer

    longer = {"input_ids": [5, *row["input_ids"]], "labels": [-100, *row["labels"]]}
    batch = collate([row, longer], tiny_tokenizer.pad_token_id)
    assert len(batch["logits_to_keep"]) == len(answer), "the head reads prompts"
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=4)
        alone = []
        for ids in (row["input_ids"], longer["input_ids"]):
            logps = trainer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            alone += [-logps[len(ids) - 3, answer[0]], -logps[len(ids) - 2, answer[1]]]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


def test_a_worked_solution_is_preferred_to_the_answer(tiny_tokenizer: Any) -> None:
    rows = Echo().load("train").add_column("solution", [f"It is {x}." for x in "abcdefgh"])
    first = token_rows(tiny_tokenizer, rows, context=None)[0]
    written = [token for token in first["labels"] if token != -100]
    assert tiny_tokenizer.decode(written, skip_special_tokens=True) == "It is a."


def test_rows_that_cannot_be_learned_are_named(tiny_tokenizer: Any) -> None:
    rows = Echo().load("train")
    with pytest.raises(UserError, match=r"the row a has .* tokens, more than the model's context of 4"):
        token_rows(tiny_tokenizer, rows, context=4)
    empty = rows.map(lambda row: {"answer": ""})
    with pytest.raises(UserError, match="the row a has no answer"):
        token_rows(tiny_tokenizer, empty, context=None)


def test_the_loss_falls(train: Any, options: NextToken) -> None:
    result = train("expert", replace(options, steps=20, validate_every=20))
    losses = [entry["loss"] for entry in log_of(result.folder) if "loss" in entry]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2
    card = (result.folder / "README.md").read_text()
    assert "trained by next-token prediction on the domain `echo`" in card


@pytest.mark.parametrize("method", [SVF(), LoRA(rank=2, dropout=0.2)])
def test_an_interrupted_run_resumes_to_the_same_adapter(
    train: Any, options: NextToken, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: Any
) -> None:
    options = replace(options, schedule="cosine")
    whole = train("whole", options, method)

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                callbacks = trainers[0].callback_handler.callbacks
                next(each for each in callbacks if isinstance(each, StopOnInterrupt)).requested = True

    make, trainers = expert.make_next_token_trainer, []

    def interrupted(*args: Any, **options: Any) -> Any:
        trainers.append(make(*args, **options))
        trainers[0].add_callback(Interrupt())
        return trainers[0]

    with monkeypatch.context() as patch:
        patch.setattr(expert, "make_next_token_trainer", interrupted)
        with pytest.raises(Interrupted, match="step 3"):
            train("parts", options, method)
    parts = train("parts", options, method, resume=True)

    assert log_of(parts.folder) == log_of(whole.folder)
    wanted = load_file(whole.folder / "adapter_model.safetensors")
    got = load_file(parts.folder / "adapter_model.safetensors")
    assert all(torch.equal(tensor, got[key]) for key, tensor in wanted.items())


def test_micro_batches_do_not_change_the_gradient(
    tiny_folder: Path, tiny_tokenizer: Any, options: NextToken, tmp_path: Path
) -> None:
    z = []
    for micro_batch_size in (2, 6):
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        once = replace(options, steps=1, micro_batch_size=micro_batch_size, max_grad_norm=0.0)
        loaded = LoadedBase(base, tiny_tokenizer, "tiny")
        trainer = make_next_token_trainer(loaded, Echo(), SVFConfig(), once, tmp_path)
        trainer.args.save_strategy = "no"
        trainer.train()
        z.append(torch.cat([p.detach() for p in trainer.model.parameters() if p.requires_grad]))
    assert (z[0] != 1).any()
    torch.testing.assert_close(z[0], z[1])


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("learning_rate", 0.0), ("sequences_per_step", 0)])
def test_settings_that_cannot_work_are_refused(options: NextToken, field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        replace(options, **{field: value})
