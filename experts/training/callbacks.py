"""What happens between the steps of a run: the check for NaN, validation, the log, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from experts.outside.errors import UserError
from experts.training.log import Figure, Log
from experts.training.processes import processes
from experts.training.progress import Progress


class Diverged(UserError):
    """The loss, or what is trained, stopped being a finite number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is no longer a finite number at step {step}; try a smaller learning rate")
        self.step = step


class StopAtNaN(TrainerCallback):
    """Looks at what is trained after every optimiser step, before anything is validated or saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            raise Diverged(state.global_step, "what is trained")


@dataclass(frozen=True)
class Validation:
    """What chooses the best step of a run, and when there is nothing more to expect."""

    measure: Callable[[Any], Figure]
    """The model → how good it is. All processes are asked at once, and get the same answer."""
    better: Literal["higher", "lower"]
    every: int
    """Steps between validations; the last step is validated in any case."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best; None never stops early."""

    def best_step(self, figures: Mapping[int, Figure]) -> int | None:
        """The earliest of the best steps. The untrained step 0 does not count."""
        sign = 1 if self.better == "higher" else -1
        trained = [step for step in figures if step]
        return max(trained, key=lambda step: (sign * float(figures[step]), -step)) if trained else None

    def out_of_patience(self, figures: Mapping[int, Figure]) -> bool:
        best = self.best_step(figures)
        if self.patience is None or best is None:
            return False
        return sum(step > best for step in figures) >= self.patience


class Validate(TrainerCallback):
    """Measures how good the model is, keeps what is trained, and stops when it no longer improves.

    It looks at the log alone, and so a run that was resumed chooses, and stops, where a whole one does.
    """

    def __init__(self, validation: Validation, log: Log, progress: Progress) -> None:
        self.validation, self.log, self.progress = validation, log, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self._validate(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.validation.every and state.global_step < state.max_steps:
            return
        self._validate(state.global_step, model)
        if self.validation.out_of_patience(self.log.validations()):
            control.should_save = control.should_training_stop = True

    def _validate(self, step: int, model: nn.Module) -> None:
        figure = self.validation.measure(model)
        if processes().is_main_process:
            keep(model, self.log.path.parent, step)
            self.log.append_validation(step, figure)
            self.progress.validated(step, figure)
        processes().wait_for_everyone()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # From here on the run goes on after this step, and what was validated before and is not the best is not needed.
        processes().wait_for_everyone()
        if processes().is_main_process:
            best = self.validation.best_step(self.log.validations())
            for path in self.log.path.parent.glob(kept_path(Path(), "*").name):
                if best is not None and path != kept_path(self.log.path.parent, best):
                    path.unlink()


class KeepLast(TrainerCallback):
    """Keeps what was trained by the last step, where nothing is validated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == state.max_steps and state.is_world_process_zero:
            keep(model, self.folder, state.global_step)


def kept_path(folder: Path, step: int | str) -> Path:
    """Where what was trained until a step is kept until the run ends."""
    return folder / f"validated-{step}.safetensors"


def keep(model: nn.Module, folder: Path, step: int) -> None:
    """Writes what is trained of a model, and nothing of what is frozen."""
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, kept_path(folder, step))


# What a trainer logs of a step → its name in our log.
FIGURES = {
    "reward": "reward",
    "accuracy": "accuracy",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "kl": "kl",
}


class StepLog(TrainerCallback):
    """Carries the figures of steps to the log and the display, with the time that the steps took."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress
        self.seconds = self.began = 0.0
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens = state.num_input_tokens_seen
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "learning_rate" not in logs:
            return
        entry = {name: logs[key] for key, name in FIGURES.items() if key in logs}
        if "reward" in entry:
            del entry["loss"]  # which says nothing: its mean is that of the advantages
        tokens = state.num_input_tokens_seen - self.tokens
        speed = {"tokens_per_second": tokens / self.seconds} if tokens else {}
        entry = {"step": state.global_step, **entry, **speed, "seconds": self.seconds}
        self.tokens, self.seconds = state.num_input_tokens_seen, 0.0
        self.log.append(**{key: round(v, 6) if isinstance(v, float) else v for key, v in entry.items()})
        self.progress.stepped(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.end()


class StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C lets the step finish and writes a checkpoint; the second one stops at once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.requested = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = signal.signal(signal.SIGINT, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True
        self.progress.say("finishing this step, then stopping; press Ctrl-C again to stop at once")
        signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
