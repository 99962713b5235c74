"""Where a run keeps itself: in `<output>.unfinished/` until it is complete, and in `<output>/` from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experts.outside.errors import UserError
from experts.outside.files import check_new_folder, check_writable, write_json
from experts.training.processes import processes


def unfinished_folder(output: Path) -> Path:
    """Where the run that will end in `output` keeps itself until then."""
    output = Path(os.path.normpath(output))
    return output.with_name(output.name + ".unfinished")


def last_checkpoint(unfinished: Path) -> str | None:
    """The last complete one. The trainer writes its state last; a killed run may leave a checkpoint without it."""
    complete = [path for path in unfinished.glob("checkpoint-*") if _is_complete(path)]
    return str(max(complete, key=checkpoint_step)) if complete else None


def checkpoint_step(checkpoint: str | Path | None) -> int:
    """The step after which a checkpoint was written; 0 where there is none."""
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0


def _is_complete(checkpoint: Path) -> bool:
    count = processes().num_processes
    generators = ["rng_state.pth"] if count == 1 else [f"rng_state_{rank}.pth" for rank in range(count)]
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).is_file() for name in generators)


def check_folders(output: Path, recipe: Mapping[str, Any], *, resume: bool, replace: bool) -> None:
    """Whether a run may begin, or go on. Leaves nothing behind.

    Raises:
        UserError: if the output is there already, or cannot be written; if there is nothing to resume, something that
            ought to be resumed, or what another recipe began.
    """
    here, there = Path.cwd(), Path(os.path.abspath(output))
    if there in (here, *here.parents):
        raise UserError(f"{output} is the current folder, or one around it: a run needs a folder of its own")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another folder")
    unfinished = unfinished_folder(output)
    going_on = resume and unfinished.exists()  # perhaps from where a complete `output` had just been written
    if output.exists() and any(output.iterdir()) and not (replace or going_on):
        raise UserError(f"{output} exists already; choose another folder, or remove it first")
    if resume and not going_on:
        raise UserError(f"there is nothing to resume: {unfinished} does not exist")
    if unfinished.exists() and not (resume or replace):
        raise UserError(f"{unfinished} holds an unfinished run; resume it, or remove it to start again")
    note = unfinished / "recipe.json"
    if resume and note.exists() and json.loads(note.read_text(encoding="utf-8")) != recipe:
        raise UserError(f"{unfinished} was begun with another recipe; resume it with that one, or remove it")
    check_new_folder(unfinished)


def prepare_folders(output: Path, recipe: Mapping[str, Any], *, resume: bool) -> Path:
    """Makes the folder of the run, after `check_folders`, and returns it; raises as `at_work_in` does."""
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
    """Removes the folder of a run as a whole: what is killed meanwhile leaves nothing that could be resumed."""
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
        lock = FileLock(unfinished / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another program is training in {unfinished}; wait until it is done, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
