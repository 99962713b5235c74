"""Adapters of tasks are runs: stopped anywhere, they go on and end in the same folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from experts.text_to_lora import adapters
from experts.text_to_lora.adapters import TaskAdapters, train_adapters
from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.tasks import Instance, Task, Tasks
from experts.text_to_lora.writer import Base
from experts.training import run
from experts.training.run import Interrupted

OPTIONS = TaskAdapters(
    steps=6,
    learning_rate=0.02,
    leave_out=2,
    instances_per_step=4,
    prompt=PromptStyle(with_definition=False, max_prompt_tokens=24, max_answer_tokens=8),
)
INSTANCES = tuple(Instance(f"a{i}", f"input {i}", ("aaa",)) for i in range(6))
TASKS = Tasks([Task("a", "train", "Write aaa.", INSTANCES, descriptions=("Always write aaa.",))], [], [])


class Interrupt(TrainerCallback):
    """Presses Ctrl-C during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def train(tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """`train(name, output)` trains on a fresh copy of the tiny base into `tmp_path/name`."""

    def train(name: str, output: LoraOutput | SvfOutput) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        base = Base("tiny", lambda: model.config, lambda: (model, tiny_tokenizer))
        train_adapters(base, TASKS, output, OPTIONS, tmp_path / name)
        return tmp_path / name / "a" / "adapter_model.safetensors"

    return train


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("output", [LoraOutput(), SvfOutput(rank=8)], ids=["lora", "svf"])
def test_an_interrupted_adapter_goes_on_to_the_same(
    train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Any, step: int
) -> None:
    whole = load_file(train("whole", output))
    make = adapters._trainer

    def interrupted(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Interrupt(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "_trainer", interrupted)
        with pytest.raises(Interrupted, match=f"step {step}"):
            train("parts", output)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a.unfinished"]
    parts = load_file(train("parts", output))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a"]


def test_a_killed_adapter_goes_on_from_its_last_checkpoint(
    train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append(state.global_step)
            if steps == [0, 1, 2, 3, 4, 5]:
                raise Killed

    make = adapters._trainer

    def counted(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Count())
        return trainer

    whole = load_file(train("whole", SvfOutput(rank=8)))
    monkeypatch.setattr(adapters, "SAVE_EVERY", 2)
    monkeypatch.setattr(adapters, "_trainer", counted)
    with pytest.raises(Killed):
        train("parts", SvfOutput(rank=8))
    parts = load_file(train("parts", SvfOutput(rank=8)))
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_what_a_killed_run_had_left_to_tidy_up_is_tidied(
    train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "remove_folder", kill)
        with pytest.raises(Killed):
            train("adapters", SvfOutput(rank=8))
    complete = (tmp_path / "adapters" / "a" / "adapter_model.safetensors").read_bytes()
    assert train("adapters", SvfOutput(rank=8)).read_bytes() == complete
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["a"]
