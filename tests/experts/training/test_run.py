"""A run from start to end: what it writes, and that stopping it anywhere loses nothing."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from experts.expert import read_config
from experts.library import load_expert
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.training import expert, run
from experts.training.expert import HeldOut, TrainedExpert, train_expert
from experts.training.reinforce import Reinforce
from experts.training.run import Interrupted, Run, unfinished_folder
from experts.training.supervised import NextToken
from experts.training.trainer import Diverged, LoadedBase


@pytest.fixture
def train(tiny_folder: Path, tiny_tokenizer: Any, letters: Any, tmp_path: Path) -> Any:
    """`train(name, options)` trains on a fresh copy of the tiny base into `tmp_path/name`."""

    def train(name: str, options: Reinforce, **kwargs: Any) -> TrainedExpert:
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        return train_expert(
            LoadedBase(base, tiny_tokenizer, str(tiny_folder)),
            letters,
            SVFConfig(),
            options,
            Run(tmp_path / name, **{"recipe": {"training": "tiny"}, **kwargs}),
            HeldOut(8),
        )

    return train


def z_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def log_of(folder: Path) -> list[dict[str, Any]]:
    timed = {"seconds", "tokens_per_second"}
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def test_an_expert_is_an_ordinary_peft_folder(train: Any, options: Reinforce, tiny_folder: Path) -> None:
    result = train("expert", options)
    files = {path.name for path in result.folder.iterdir()}
    (result.folder.parent / "any").touch()
    usual = (result.folder.parent / "any").stat().st_mode  # readable by others, if the user has it so
    assert {path.stat().st_mode for path in result.folder.iterdir()} == {usual}
    assert files == {
        *("adapter_config.json", "adapter_model.safetensors", "base_sketch.safetensors"),
        *("README.md", "training_log.jsonl", "curve.png"),
    }
    assert not unfinished_folder(result.folder).exists()
    config = read_config(result.folder)
    assert (config.domain, config.base_model_name_or_path) == ("letters", str(tiny_folder))
    assert all(key.endswith(".svf_z") and z.dtype == torch.float32 for key, z in z_of(result.folder).items())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted = result.model(ids).logits
        auto = AutoPeftModelForCausalLM.from_pretrained(str(result.folder), dtype=torch.float32)
        torch.testing.assert_close(auto(ids).logits, wanted)
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        torch.testing.assert_close(load_expert(base, result.folder)(ids).logits, wanted)
    card = (result.folder / "README.md").read_text()
    assert config.base_fingerprint in card
    assert "95 % interval" in card


def test_the_same_seed_gives_the_same_expert(train: Any, options: Reinforce) -> None:
    first, second = train("first", options), train("second", options)
    assert log_of(first.folder) == log_of(second.folder)
    assert all(torch.equal(z, z_of(second.folder)[key]) for key, z in z_of(first.folder).items())
    other = train("other", replace(options, seed=1))
    assert log_of(first.folder) != log_of(other.folder)


def with_callback(make: Any, callback: TrainerCallback) -> Any:
    """A function that makes trainers, with one more callback for each."""

    def made(*args: Any, **options: Any) -> Any:
        trainer = make(*args, **options)
        trainer.add_callback(callback)
        return trainer

    return made


class Interrupt(TrainerCallback):
    """Presses Ctrl-C during a step, or sends another signal."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("parametrization", "step", "number"),
    [
        ("raw", 3, signal.SIGINT),
        ("sigmoid", 3, signal.SIGTERM),
        ("shared", 3, signal.SIGINT),
        ("raw", 6, signal.SIGTERM),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_expert(
    train: Any,
    options: Reinforce,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    parametrization: Any,
    step: int,
    number: int,
) -> None:
    options = replace(options, steps=6, parametrization=parametrization, schedule="cosine")
    whole = train("whole", options)

    with monkeypatch.context() as patch:
        patch.setattr(expert, "make_trainer", with_callback(expert.make_trainer, Interrupt(step, number)))
        with pytest.raises(Interrupted, match=f"step {step}"):
            train("parts", options)
    assert not (tmp_path / "parts").exists()
    with pytest.raises(UserError, match="continue it with --resume"):
        train("parts", options)
    (unfinished_folder(tmp_path / "parts") / f"checkpoint-{step + 1}").mkdir()  # of a run killed while it wrote
    with pytest.raises(UserError, match="another recipe"):
        train("parts", options, resume=True, recipe={"training": "other"})
    parts = train("parts", options, resume=True)

    assert log_of(parts.folder) == log_of(whole.folder)
    assert all(torch.equal(z, z_of(parts.folder)[key]) for key, z in z_of(whole.folder).items())


def test_completions_are_kept_where_one_wants_to_look(
    train: Any, options: Reinforce, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = replace(options, steps=3)
    assert not (train("silent", options).folder / "completions.jsonl").exists()
    whole = train("whole", options, log_completions=True).folder / "completions.jsonl"
    lines = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    a_step = options.prompts_per_step * options.samples_per_prompt
    assert [line["step"] for line in lines] == [step for step in (1, 2, 3) for _ in range(a_step)]
    for step in (1, 2, 3):
        (reward,) = (entry["reward"] for entry in log_of(whole.parent) if entry["step"] == step and "reward" in entry)
        rewards = [line["reward"] for line in lines if line["step"] == step]
        assert sum(rewards) / a_step == pytest.approx(reward, abs=1e-6)
    assert {"role", "content"} == lines[0]["prompt"][0].keys()
    assert len({line["completion"] for line in lines}) > 1
    with monkeypatch.context() as patch:
        patch.setattr(expert, "make_trainer", with_callback(expert.make_trainer, Interrupt(2)))
        with pytest.raises(Interrupted):
            train("parts", options, log_completions=True)
    parts = train("parts", options, resume=True, log_completions=True)
    assert (parts.folder / "completions.jsonl").read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="samples nothing"):
        train("next", NextToken(learning_rate=0.1, steps=1), log_completions=True)


def test_nan_stops_the_run_and_keeps_the_last_good_expert(
    train: Any, options: Reinforce, letters: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 2:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    monkeypatch.setattr(expert, "make_trainer", with_callback(expert.make_trainer, Poison()))
    with pytest.raises(Diverged, match="step 3"):
        train("expert", options)
    assert all(torch.isfinite(z).all() for z in z_of(tmp_path / "expert").values())


def test_nan_before_the_first_validation_leaves_no_expert(train: Any, options: Reinforce, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train("expert", replace(options, learning_rate=1e30, max_grad_norm=0.0))
    assert not (tmp_path / "expert").exists()


def test_it_stops_early_without_improvement(train: Any, options: Reinforce) -> None:
    # Scores below 1 never count as right, so that no validation is better than the first.
    result = train("expert", replace(options, steps=20, validate_every=1, patience=2))
    assert max(entry["step"] for entry in log_of(result.folder)) == 3
    assert result.best_step == 1


def test_what_exists_is_not_overwritten(train: Any, options: Reinforce, tmp_path: Path) -> None:
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        train("expert", options)
    with pytest.raises(UserError, match="nothing to resume"):
        train("new", options, resume=True)


def test_an_unwritable_output_is_said_before_training(train: Any, options: Reinforce, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        train("file/expert", options)


def test_what_a_domain_does_wrong_ends_the_run_and_leaves_nothing(
    train: Any, options: Reinforce, letters: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(type(letters), "reward", lambda self, completions, **_: [0.5] * (len(completions) - 1))
    with pytest.raises(UserError, match="the reward of letters gave 3 scores for 4 completions"):  # at step 0
        train("expert", options)

    def reward(self: Any, completions: list[Any], **columns: Any) -> list[float | None]:
        return [None if "trainer_state" in columns else 1.0] * len(completions)

    monkeypatch.setattr(type(letters), "reward", reward)
    with pytest.raises(UserError, match="the reward of letters must give each completion a score"):  # at step 1
        train("expert", options)
    assert set(tmp_path.iterdir()) == before


def test_a_domain_may_count_with_any_numbers(
    train: Any, options: Reinforce, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train("plain", options)
    reward = type(letters).reward
    monkeypatch.setattr(
        type(letters), "reward", lambda *args, **columns: torch.tensor(reward(*args, **columns), dtype=torch.float64)
    )
    assert log_of(train("tensors", options).folder) == log_of(plain.folder)


def test_fewer_held_out_rows_than_asked_for_are_said(
    train: Any, options: Reinforce, capsys: pytest.CaptureFixture[str]
) -> None:
    train("expert", replace(options, validation_size=100))
    assert "letters: the validation split has 8 rows, fewer than the 100 asked for" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_a_tokenizer_without_an_end_or_a_padding_token_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path, missing: str
) -> None:
    tokens = {**tiny_tokenizer.special_tokens_map, missing: None}
    lacking = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, **tokens)
    base = LoadedBase(tiny_model, lacking, "tiny")
    with pytest.raises(UserError, match=f"set its {missing}"):
        train_expert(base, letters, SVFConfig(), options, Run(tmp_path / "expert", {}))
    assert not list(tmp_path.iterdir())


def test_a_run_killed_while_it_was_tidying_up_resumes_to_the_same_expert(
    train: Any, options: Reinforce, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "remove_folder", kill)
        with pytest.raises(Killed):
            train("expert", options)
    complete = z_of(tmp_path / "expert")
    result = train("expert", options, resume=True)
    assert all(torch.equal(z, complete[key]) for key, z in z_of(result.folder).items())
    assert not unfinished_folder(result.folder).exists()
