"""Runs the cells of an experiment, alone, beside other processes or on Ray, each cell all or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
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
from selfadapt.grid.results import (
    CELLS,
    RESULTS,
    Line,
    add_results,
    all_results,
    check_results_folder,
    collect_results,
    leave_results,
)
from selfadapt.grid.shares import Share

POLL = 2.0
"""Seconds between two looks at the cells that other processes are working on."""


def run_experiment(
    experiment: Experiment,
    output: Path,
    *,
    resume: bool,
    only: str | None = None,
    share: Share | None = None,
    on_ray: bool = False,
) -> list[Line]:
    """Runs the cells of the grid that have no results yet; returns the lines of all of them, failures included.

    Any number of processes may share `output`: a lock per cell keeps them apart, and each returns when all cells, or
    those of its share, are done.

    Args:
        output: gets `results.jsonl`, and in `cells/` what each cell trained. A share leaves its lines in `cells/`, too,
            in one file per cell, for the next run without `share` to collect.
        resume: whether there may be results already. There may be failures, and results of other shares, in any case.
        only: a pattern of cell names, such as `svf-*/sums/*`.
        share: the part of these cells that is run.
        on_ray: hand the cells to the workers of Ray, instead of running one after another here.

    Raises:
        UserError: if there are results of another experiment, the folder holds other things, nothing matches `only`,
            there is no such base, a domain's answers cannot be judged here, or Ray is not installed.
        Interrupted: after Ctrl-C, once the running cell has a checkpoint.
    """
    if processes().num_processes > 1:
        raise UserError(
            "a grid does not run under torchrun or accelerate launch: to share it, start the command several times"
        )
    check_results_folder(output)
    results = output / RESULTS
    if not resume and share is None and any(line.error is None for line in all_results(results)):
        raise UserError(f"{results} exists already; resume it, or choose another folder")
    matching = [cell for cell in experiment.cells if only is None or fnmatch(cell.name, only)]
    if not matching:
        names = ", ".join(cell.name for cell in experiment.cells)
        raise UserError(f"no cell matches {only!r}; the cells are {names}")
    cells = {cell.name: cell for cell in (matching if share is None else share.of(matching))}
    work = Work(output, cells, leaves=on_ray or share is not None)
    before = work.lines()
    if not resume and (there := [line for line in before if line.error is None]):
        raise UserError(f"{results} has results of {there[0].cell} already; resume them, or choose another folder")
    work.to_retry.update(line.cell for line in before if line.error)
    to_run = [cell for cell in cells.values() if not work.is_settled(cell, before)]
    check_domains(to_run)
    for cell in to_run[:1]:  # they share one base
        load_config(cell.model, **cell.base.options())
    check_writable(output / CELLS)
    with _workers(work, on_ray) as run:
        while open_cells := _open_cells(work, wait=only is None):
            if not run([cell for cell, ready in open_cells if ready]):
                time.sleep(POLL)
    if share is None:
        collect_results(results, [cell.name for cell in experiment.cells])
    return work.lines()


@dataclass
class Work:
    """The cells that are asked for, and what is known of them."""

    output: Path
    cells: Mapping[str, Cell]
    leaves: bool
    """Whether lines are left in a file of each cell's own instead of the results file."""
    to_retry: set[str] = field(default_factory=set)
    """The cells that failed before, and are to be tried again."""

    @property
    def results(self) -> Path:
        return self.output / RESULTS

    def lines(self) -> list[Line]:
        """The lines that there are of these cells; raises UserError if a result comes from other settings.

        Failures under other settings say nothing about these, and are left out.
        """
        of_cells = [line for line in all_results(self.results) if line.cell in self.cells]
        own = [(line, line.settings == self.cells[line.cell].settings) for line in of_cells]
        for line, same in own:
            if not same and line.error is None:
                raise UserError(
                    f"{self.results} has results of {line.cell} with other settings than the experiment's; choose "
                    "another folder, or remove those lines"
                )
        return [line for line, same in own if same]

    def is_settled(self, cell: Cell, lines: Sequence[Line]) -> bool:
        """Whether a cell has all its results, or has failed and is not to be tried again."""
        own = [line for line in lines if line.cell == cell.name]
        if any(line.error for line in own):
            return cell.name not in self.to_retry
        return {line.evaluated_on for line in own} == {*cell.evaluations}

    def done(self, lines: Sequence[Line]) -> str:
        """How many cells are done, in words."""
        count = sum(self.is_settled(cell, lines) for cell in self.cells.values())
        return f"{count} of at most {len(self.cells)} cells are done"


def _open_cells(work: Work, *, wait: bool) -> list[tuple[Cell, bool]]:
    """The cells that are, or may be, still to be run, and whether that is certain.

    Args:
        wait: whether to wait for the choice of a cell's learning rate; cells asked for by name do not.
    """
    lines = work.lines()
    needed = {name: cell.is_needed(lines) if wait else True for name, cell in work.cells.items()}
    return [
        (cell, needed[name] is True)
        for name, cell in work.cells.items()
        if needed[name] is not False and not work.is_settled(cell, lines)
    ]


@contextmanager
def _workers(work: Work, on_ray: bool) -> Iterator[Callable[[Sequence[Cell]], bool]]:
    """Yields a function that runs cells, and says whether any of them has ended."""
    if on_ray:
        from selfadapt.grid.on_ray import RayWorkers

        # Ray prints to stdout when a worker has died.
        with redirect_stdout(sys.stderr), RayWorkers(work) as workers:
            yield workers.run
    else:
        yield lambda cells: any(claim_and_run(cell, work) is not None for cell in cells)


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


def claim_and_run(cell: Cell, work: Work) -> list[Line] | None:
    """Runs a cell and adds its results; None if another process has it, or has settled it."""
    folder = work.output / CELLS / cell.name.replace("/", "--")
    keep = leave_results if work.leaves else add_results
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            lines = work.lines()
            if work.is_settled(cell, lines):
                return None
            say(f"{cell.name}: {work.done(lines)}")
            new = run_cell(cell, folder, all_results(work.results))
            keep(work.results, new)
            work.to_retry.discard(cell.name)
            return new
    except Timeout:
        return None


def run_cell(cell: Cell, folder: Path, lines: Sequence[Line]) -> list[Line]:
    """Runs a cell; a failure is a result too, of one line that says what happened.

    Raises:
        Interrupted: after Ctrl-C.
    """
    try:
        return cell.run(folder, lines)
    except Interrupted:
        raise
    except Exception as error:
        line = failure(cell, error)
        say(f"{cell.name} failed: {line.error}")
        return [line]


def failure(cell: Cell, error: Exception) -> Line:
    """The result of a cell that has failed."""
    said = " ".join(str(error).split())[:300]
    return replace(cell.line(), error=f"{type(error).__name__}: {said}")


def say(text: str) -> None:
    """Prints to stderr, for whoever watches."""
    Console(stderr=True).print(text, highlight=False)
