"""Which step of a run is its best, and what is kept of steps until that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from experts.training.log import Figure, Log, Progress
from experts.training.processes import processes


@dataclass(frozen=True)
class Validation:
    """What chooses the best step of a run, and decides when no further improvement is expected."""

    measure: Callable[[Any], Figure]
    """The model → how good it is. All processes call it at once, and get the same answer."""
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

    It only looks at the log, so a resumed run chooses, and stops, where an uninterrupted one does.
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
        # From here on the run resumes after this step, so earlier validated steps other than the best are not needed.
        processes().wait_for_everyone()
        if processes().is_main_process:
            best = self.validation.best_step(self.log.validations())
            for path in self.log.path.parent.glob(kept_path(Path(), "*").name):
                if best is not None and path != kept_path(self.log.path.parent, best):
                    path.unlink()


class KeepLast(TrainerCallback):
    """Keeps the trained parameters of the last step, if nothing is validated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == state.max_steps and state.is_world_process_zero:
            keep(model, self.folder, state.global_step)


def kept_path(folder: Path, step: int | str) -> Path:
    """Where the trained parameters of a step are kept until the run ends."""
    return folder / f"validated-{step}.safetensors"


def keep(model: nn.Module, folder: Path, step: int) -> None:
    """Writes a model's trained parameters, and none that are frozen."""
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, kept_path(folder, step))
