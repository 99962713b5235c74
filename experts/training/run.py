"""A run: a training that can be stopped at any moment, can be resumed, and ends in a complete folder or in none.

While it runs, everything is in `<output>.unfinished/` (the log, the last two checkpoints, and the trained parameters of
the best validation). `<output>/` appears only when the run is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.trainer_callback import PrinterCallback

from experts.outside.errors import UserError
from experts.outside.files import atomic_folder, check_new_folder, check_writable, write_json
from experts.outside.reading import read_json
from experts.training.log import Figure, Log, Progress, StepLog
from experts.training.processes import processes
from experts.training.trainer import Diverged, RunTrainer, StopOnInterrupt
from experts.training.validation import KeepLast, Validate, Validation, kept_path

LOCK = ".lock"


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    folder: Path
    parameters: int
    """How many parameters were trained."""
    validations: Mapping[int, Figure]
    """Step → what its validation measured. Step 0 is what the training started from."""
    best_step: int
    train_seconds: float
    diverged: Diverged | None = None
    """What ended it before its last step. `Run.finish` raises it, after writing the best step until then."""


class Interrupted(UserError):
    """Ctrl-C: the run stopped after a checkpoint and can be resumed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}; resume the run to continue from there")


@dataclass(frozen=True)
class Run:
    """Where a training writes, and whether it starts there or resumes.

    A training gets its run. It calls `check` before anything is loaded, and then, within `at_work`, `train` once and
    `finish` once.
    """

    output: Path
    """The folder of the result; it must not exist unless `replace`."""
    recipe: Mapping[str, Any]
    """All that the result depends on, as in the model card; a run that another recipe started is not resumed."""
    resume: bool = False
    """Resume from `<output>.unfinished/`, with the result of an uninterrupted run."""
    replace: bool = False
    log_completions: bool = False
    """Keep the samples and their rewards in `completions.jsonl` beside the log, for those who want to look."""
    beside: Callable[[Path], None] = lambda folder: None
    """Writes what else belongs in the output, before the output appears."""

    @property
    def folder(self) -> Path:
        """The folder of the run until it is complete."""
        return unfinished_folder(self.output)

    @property
    def log(self) -> Log:
        return Log(self.folder / "training_log.jsonl")

    @property
    def completions(self) -> Log:
        return Log(self.folder / "completions.jsonl")

    def check(self) -> None:
        """Finds what is wrong with the folders, and leaves nothing behind.

        Raises:
            UserError: as `check_folders` does.
        """
        check_folders(self.output, self.recipe, resume=self.resume, replace=self.replace)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keeps the folder to itself within the block; a run that fails before its first checkpoint leaves nothing.

        Raises:
            UserError: as `check` does, or if another program is at work there.
        """
        self.check()
        with at_work_in(prepare_folders(self.output, self.recipe, resume=self.resume)):
            yield

    def train(self, trainer: RunTrainer, progress: Progress, validation: Validation | None = None) -> Result:
        """Trains, or resumes, to the end, and leaves the trainer's model as it was at the best step.

        Without a validation the last step is the best.

        Raises:
            Diverged: at the first NaN, if no step has been validated yet.
            Interrupted: after Ctrl-C, once a checkpoint is written.
        """
        checkpoint = last_checkpoint(self.folder) if self.resume else None
        processes().wait_for_everyone()  # everyone has looked before the first one changes anything
        if self.resume and processes().is_main_process:
            for log in (self.log, self.completions):
                log.forget_after(checkpoint_step(checkpoint) if checkpoint else -1)
        processes().wait_for_everyone()
        interrupt = StopOnInterrupt(progress)
        keeps = Validate(validation, self.log, progress) if validation else KeepLast(self.folder)
        trainer.remove_callback(PrinterCallback)
        for callback in (StepLog(self.log, progress), keeps, interrupt):
            trainer.add_callback(callback)
        diverged: Diverged | None = None
        patient = validation is None or not validation.out_of_patience(self.log.validations())
        try:
            # The Trainer would make one step too many after a checkpoint of the last step.
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
            raise diverged  # nothing has been validated, so there is nothing to keep
        assert best is not None
        model: Any = trainer.model
        model.load_state_dict(self._kept(best), strict=False)
        return Result(self.output, trainer.trained_parameters(), figures, best, self.log.seconds(), diverged)

    def _kept(self, step: int) -> dict[str, Tensor]:
        """The trained parameters as they were at a step."""
        path = kept_path(self.folder, step)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}, the parameters at the best step, is missing or damaged: train again") from error

    def finish(self, result: Result, write: Callable[[Path], None]) -> None:
        """Makes `output` from what `write` puts into a folder, with the log beside it, and ends the run.

        Raises:
            Diverged: if that ended the training before its last step.
        """
        processes().wait_for_everyone()  # everyone has read the best step before it is removed
        if processes().is_main_process:
            with atomic_folder(self.output) as folder:
                for log in (self.log, self.completions):
                    if log.path.exists():
                        shutil.copyfile(log.path, folder / log.path.name)
                write(folder)
                self.beside(folder)
            remove_folder(self.folder)
        processes().wait_for_everyone()
        if result.diverged:
            raise result.diverged


def unfinished_folder(output: Path) -> Path:
    """The folder of the run that will end in `output`, until then."""
    output = Path(os.path.normpath(output))
    return output.with_name(output.name + ".unfinished")


def is_begun(output: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether there is a run of this recipe that can be resumed."""
    unfinished = unfinished_folder(output)
    return unfinished.exists() and _was_begun_with(unfinished, recipe)


def _was_begun_with(unfinished: Path, recipe: Mapping[str, Any]) -> bool:
    note = unfinished / "recipe.json"
    return not note.exists() or read_json(note) == recipe


def last_checkpoint(unfinished: Path) -> str | None:
    """The last complete checkpoint. The trainer writes its state last; a killed run may leave one without it, and a
    machine that loses its power, torn files."""
    complete = [path for path in unfinished.glob("checkpoint-*") if _is_complete(path)]
    return str(max(complete, key=checkpoint_step)) if complete else None


def checkpoint_step(checkpoint: str | Path | None) -> int:
    """The step after which a checkpoint was written; 0 if there is none."""
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0


def _is_complete(checkpoint: Path) -> bool:
    count = processes().num_processes
    generators = ["rng_state.pth"] if count == 1 else [f"rng_state_{rank}.pth" for rank in range(count)]
    needed = ["optimizer.pt", "scheduler.pt", *generators]  # the trainer would do without, and go elsewhere
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for tensors in checkpoint.glob("*.safetensors"):
            with safe_open(tensors, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    saved = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth")]  # each a zip archive
    whole = all(path.is_dir() or zipfile.is_zipfile(path) for path in saved)
    return whole and isinstance(state, dict) and all((checkpoint / name).is_file() for name in needed)


def check_folders(output: Path, recipe: Mapping[str, Any], *, resume: bool, replace: bool) -> None:
    """Checks whether a run may start or resume. Leaves nothing behind.

    Raises:
        UserError: if the output already exists or cannot be written; if there is nothing to resume, a run that ought to
            be resumed, or one that another recipe started; or if another program is at work there.
    """
    here, there = Path.cwd(), Path(os.path.abspath(output))
    if there in (here, *here.parents):
        raise UserError(f"{output} is the current folder, or contains it: a run needs a folder of its own")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another folder")
    unfinished = unfinished_folder(output)
    going_on = resume and unfinished.exists()  # perhaps from just after a complete `output` was written
    if output.exists() and any(output.iterdir()) and not (replace or going_on):
        raise UserError(f"{output} exists already; choose another folder, or remove it first")
    if resume and not going_on:
        raise UserError(f"there is nothing to resume: {unfinished} does not exist")
    if (unfinished / LOCK).exists() and processes().is_main_process:
        with _alone_in(unfinished):
            pass
    if unfinished.exists() and not (resume or replace):
        on = "continue it with --resume (in Python resume=True)"
        on = on if _was_begun_with(unfinished, recipe) else "choose another folder, as this one is of another recipe"
        raise UserError(f"{unfinished} holds an unfinished run: {on}; or remove it to start over (rm -r {unfinished})")
    if resume and not _was_begun_with(unfinished, recipe):
        raise UserError(f"{unfinished} was begun with another recipe; resume it with that one, or remove it")
    check_new_folder(unfinished)


def prepare_folders(output: Path, recipe: Mapping[str, Any], *, resume: bool) -> Path:
    """Makes the run's folder, after `check_folders`, and returns it; raises as `at_work_in` does."""
    unfinished, state = unfinished_folder(output), processes()
    state.wait_for_everyone()  # everyone has looked before the first one changes anything
    if state.is_main_process:
        if not resume and unfinished.exists():
            with _alone_in(unfinished):
                remove_folder(unfinished)
        check_writable(unfinished)
        write_json(unfinished / "recipe.json", recipe)
    state.wait_for_everyone()
    return unfinished


def remove_folder(unfinished: Path) -> None:
    """Removes a run's folder as a whole: even if this is killed, it leaves nothing that could be resumed."""
    removed = unfinished.with_name(f".{unfinished.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if unfinished.exists():
        os.replace(unfinished, removed)
        shutil.rmtree(removed)


@contextmanager
def at_work_in(unfinished: Path) -> Iterator[Path]:
    """Keeps other runs out of a run's folder, and removes it if the run fails before its first checkpoint.

    Raises:
        UserError: if another program is at work there.
    """
    main = processes().is_main_process
    with _alone_in(unfinished) if main else nullcontext():
        try:
            yield unfinished
        except Exception:
            if main and last_checkpoint(unfinished) is None:
                remove_folder(unfinished)
            raise


@contextmanager
def _alone_in(unfinished: Path) -> Iterator[None]:
    try:
        lock = FileLock(unfinished / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another program is training in {unfinished}; wait until it is done, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
