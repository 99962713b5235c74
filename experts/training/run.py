"""A run: what trains, can be stopped at any moment, goes on, and ends in a whole folder or in none.

While it runs, everything lives in `<output>.unfinished/` (the log, the last two checkpoints, and what was trained as it
was at the best validation). `<output>/` appears when the run is complete, and not before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from experts.outside.errors import UserError
from experts.outside.files import atomic_folder
from experts.training.callbacks import (
    Diverged,
    KeepLast,
    StepLog,
    StopAtNaN,
    StopOnInterrupt,
    Validate,
    Validation,
    kept_path,
)
from experts.training.folders import (
    at_work_in,
    check_folders,
    checkpoint_step,
    last_checkpoint,
    prepare_folders,
    remove_folder,
    unfinished_folder,
)
from experts.training.log import Figure, Log
from experts.training.processes import processes
from experts.training.progress import Progress


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    folder: Path
    parameters: int
    """How many numbers were trained."""
    validations: Mapping[int, Figure]
    """By step. Step 0 is what the training began with."""
    best_step: int
    train_seconds: float
    diverged: Diverged | None = None
    """What ended it before its last step. `Run.finish` raises it, when the best step until then is written."""


class Interrupted(UserError):
    """Ctrl-C: the run stopped after a checkpoint and can go on."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}; it goes on from there when it is resumed")


@dataclass(frozen=True)
class Run:
    """Where a training goes, and whether it begins there or goes on.

    A training is given its run. It calls `check` before anything is loaded, and then, within `at_work`, `train` once
    and `finish` once.
    """

    output: Path
    """The folder that it ends in; must not exist unless `replace`."""
    recipe: Mapping[str, Any]
    """All that the result depends on, as it stands in the model card; what another recipe began is not resumed."""
    resume: bool = False
    """Go on from `<output>.unfinished/`, with the result of an uninterrupted run."""
    replace: bool = False

    @property
    def folder(self) -> Path:
        """Of the run until it is complete."""
        return unfinished_folder(self.output)

    @property
    def log(self) -> Log:
        return Log(self.folder / "training_log.jsonl")

    def check(self) -> None:
        """Finds what is wrong with the folders, and leaves nothing behind.

        Raises:
            UserError: as `check_folders` does.
        """
        check_folders(self.output, self.recipe, resume=self.resume, replace=self.replace)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Has the folder to itself; one that fails before its first checkpoint leaves nothing.

        Raises:
            UserError: as `check` does, or if another program is at work there.
        """
        self.check()
        with at_work_in(prepare_folders(self.output, self.recipe, resume=self.resume)):
            yield

    def train(self, trainer: Trainer, progress: Progress, validation: Validation | None = None) -> Result:
        """Trains to the end, or goes on to it, and leaves the trainer's model as it was at the best step.

        Without a validation the last step is the best.

        Raises:
            Diverged: at the first NaN, where no step has been validated yet.
            Interrupted: after Ctrl-C, once a checkpoint is written.
        """
        checkpoint = last_checkpoint(self.folder) if self.resume else None
        processes().wait_for_everyone()  # everyone has looked before the first one changes anything
        if self.resume and processes().is_main_process:
            self.log.forget_after(checkpoint_step(checkpoint) if checkpoint else -1)
        processes().wait_for_everyone()
        interrupt = StopOnInterrupt(progress)
        keeps = Validate(validation, self.log, progress) if validation else KeepLast(self.folder)
        trainer.remove_callback(PrinterCallback)
        for callback in (StopAtNaN(), StepLog(self.log, progress), keeps, interrupt):
            trainer.add_callback(callback)
        diverged: Diverged | None = None
        patient = validation is None or not validation.out_of_patience(self.log.validations())
        try:
            # The Trainer would make one step more than it should after a checkpoint of the last step.
            if checkpoint_step(checkpoint) < trainer.args.max_steps and patient:
                trainer.train(resume_from_checkpoint=checkpoint)
        except Diverged as error:
            diverged = error
        finally:
            progress.end()
        if interrupt.requested:
            raise Interrupted(trainer.state.global_step)
        figures = self.log.validations()
        best = validation.best_step(figures) if validation else trainer.args.max_steps
        if diverged and (validation is None or best is None):
            raise diverged  # nothing has been validated: there is nothing to keep
        assert best is not None
        model: Any = trainer.model
        model.load_state_dict(load_file(kept_path(self.folder, best)), strict=False)
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return Result(self.output, parameters, figures, best, self.log.seconds(), diverged)

    def finish(self, result: Result, write: Callable[[Path], None]) -> None:
        """Makes `output` of what `write` puts into a folder, with the log beside it; then the run is over.

        Raises:
            Diverged: what ended the training before its last step.
        """
        if processes().is_main_process:
            with atomic_folder(self.output) as folder:
                shutil.copyfile(self.log.path, folder / self.log.path.name)
                write(folder)
            remove_folder(self.folder)
        processes().wait_for_everyone()
        if result.diverged:
            raise result.diverged
