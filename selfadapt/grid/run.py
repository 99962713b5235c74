"""Runs the cells of an experiment, alone or beside other processes, each cell all or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from experts.domains import check_domain, load_rows
from experts.outside.errors import UserError
from experts.outside.files import check_writable
from experts.training.options import check_step
from experts.training.processes import processes
from experts.training.run import Interrupted
from selfadapt.base_models import load_config
from selfadapt.grid.cells import Cell, TrainedCell
from selfadapt.grid.experiment import Experiment
from selfadapt.grid.results import RESULTS, Line, add_results, check_results_folder, read_results
from selfadapt.grid.shares import Share

POLL = 2.0
"""Seconds between two looks at the cells that other processes are working on."""


def run_experiment(
    experiment: Experiment, output: Path, *, resume: bool, only: str | None = None, share: Share | None = None
) -> list[Line]:
    """Runs the cells of the grid that have no results yet; returns the lines of all of them, failures included.

    Any number of processes may share `output`: a lock a cell keeps them apart, and each returns when all is done, or
    its own share of it.

    Args:
        output: gets `results.jsonl`, and in `cells/` what each cell trained.
        resume: whether there may be results already. There may be failures, and results of other shares, in any case.
        only: a pattern of cell names, such as `svf-*/sums/*`.
        share: the part of these cells that is run.

    Raises:
        UserError: for results of another experiment, a folder of other things, where nothing matches `only`, or where
            there is no such base, or a domain's answers cannot be judged here.
        Interrupted: after Ctrl-C, once the running cell has a checkpoint.
    """
    if processes().num_processes > 1:
        raise UserError(
            "a grid is shared by processes of its own, not by those of one training: start it several times"
        )
    check_results_folder(output)
    results = output / RESULTS
    if not resume and share is None and any(line.error is None for line in read_results(results)):
        raise UserError(f"{results} exists already; resume it, or choose another folder")
    matching = [cell for cell in experiment.cells if only is None or fnmatch(cell.name, only)]
    if not matching:
        names = ", ".join(cell.name for cell in experiment.cells)
        raise UserError(f"no cell matches {only!r}; the cells are {names}")
    cells = {cell.name: cell for cell in (matching if share is None else share.of(matching))}
    if not resume and (there := [line for line in _own_lines(results, cells) if line.error is None]):
        raise UserError(f"{results} has results of {there[0].cell} already; resume them, or choose another folder")
    to_retry = {line.cell for line in _own_lines(results, cells) if line.error}
    to_run = [cell for cell in cells.values() if not _is_settled(cell, _own_lines(results, cells), to_retry)]
    check_domains(to_run)
    for cell in to_run[:1]:  # they have one base
        load_config(cell.model, **cell.base.options())
    check_writable(output / "cells")
    while True:
        lines = _own_lines(results, cells)
        # What is asked for by name does not wait for the choice of its learning rate.
        needed = {name: True if only else cell.is_needed(lines) for name, cell in cells.items()}
        open_cells = [
            cell for name, cell in cells.items() if needed[name] is not False and not _is_settled(cell, lines, to_retry)
        ]
        if not open_cells:
            return lines
        begun = [_claim_and_run(cell, cells, output, to_retry) for cell in open_cells if needed[cell.name]]
        if not any(begun):
            time.sleep(POLL)


def check_domains(cells: Sequence[Cell]) -> None:
    """Reads what cells are trained and evaluated on, before any base is loaded.

    Raises:
        UserError: if rows cannot be read, or answers cannot be judged here; or as `check_step` does.
    """
    for domain in {name: each.domain for cell in cells for name, each in cell.evaluations.items()}.values():
        check_domain(domain)
        load_rows(domain, "test")
    trained = {(cell.trained_on, cell.method): cell for cell in cells if isinstance(cell, TrainedCell)}
    rows = {name: len(load_rows(cell.recipe.domain, "train")) for (name, _), cell in trained.items()}
    for (name, _), cell in trained.items():
        load_rows(cell.recipe.domain, "validation")
        check_step(cell.recipe.training, rows[name])


def _claim_and_run(cell: Cell, cells: Mapping[str, Cell], output: Path, to_retry: set[str]) -> bool:
    """Runs a cell and adds its results; False, if another process has it, or has settled it."""
    folder = output / "cells" / cell.name.replace("/", "--")
    results = output / RESULTS
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            lines = _own_lines(results, cells)
            if _is_settled(cell, lines, to_retry):
                return False
            done = sum(_is_settled(each, lines, to_retry) for each in cells.values())
            Console(stderr=True).print(f"{cell.name}: {done} of at most {len(cells)} cells are done", highlight=False)
            add_results(results, run_cell(cell, folder, read_results(results)))
            to_retry.discard(cell.name)
            return True
    except Timeout:
        return False


def run_cell(cell: Cell, folder: Path, lines: Sequence[Line]) -> list[Line]:
    """`cell.run`; a failure is a result too, of one line that says what happened.

    Raises:
        Interrupted: after Ctrl-C.
    """
    try:
        return cell.run(folder, lines)
    except Interrupted:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        line = replace(cell.line(), error=f"{type(error).__name__}: {said}")
        Console(stderr=True).print(f"{cell.name} failed: {line.error}", highlight=False)
        return [line]


def _own_lines(results: Path, cells: Mapping[str, Cell]) -> list[Line]:
    """The lines of these cells; raises UserError, if a result has come from other settings.

    What failed under other settings says nothing of these.
    """
    own = [(line, line.settings == cells[line.cell].settings) for line in read_results(results) if line.cell in cells]
    lines = [line for line, same in own if same or line.error is None]
    for line in lines:
        if line.settings != cells[line.cell].settings:
            raise UserError(
                f"{results} has results of {line.cell} with other settings than the experiment's; choose another "
                "folder, or remove those lines"
            )
    return lines


def _is_settled(cell: Cell, lines: Sequence[Line], to_retry: set[str]) -> bool:
    """Whether a cell has all its results, or has failed and is not to be tried again."""
    own = [line for line in lines if line.cell == cell.name]
    if any(line.error for line in own):
        return cell.name not in to_retry
    return {line.evaluated_on for line in own} == {*cell.evaluations}
