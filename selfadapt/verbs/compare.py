"""`selfadapt compare EXPERIMENT`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from selfadapt.verbs import show

if TYPE_CHECKING:
    from selfadapt.grid.shares import Share


def compare(
    experiment: Positional[str],
    output: Path | None = None,
    quick: bool = False,
    resume: bool = False,
    only: str | None = None,
    cells: str | None = None,
    on: Literal["ray"] | None = None,
    model: str | None = None,
    test_size: int | None = None,
    json: bool = False,
) -> None:
    """Train and evaluate a grid of methods × domains × seeds, and write tables and plots.

    Args:
        experiment: a YAML file or a shipped experiment such as methods; or a results.jsonl, to write only its tables
            and plots again.
        output: the folder for results and report; by default runs/ and the experiment's name, or results.jsonl's own.
        quick: run the smaller grid of the experiment's quick block.
        resume: go on with the results that are there; also for each further process that shares the grid.
        only: run only the cells whose names match this pattern, such as 'svf-*/sums/*'.
        cells: I/N, to run only the I-th of N shares of the cells and report nothing: for N jobs on a cluster that do
            not wait for each other. Afterwards, the same command with --resume instead of --cells runs what is missing
            and reports.
        on: hand the cells to Ray's workers, on this machine or on the cluster that RAY_ADDRESS names.
        model: another base than the recipes name, or another place of theirs: a folder, a .gguf file or a hub id.
        test_size: evaluate on this many rows of every test split, the first ones.
        json: print the rows of the tables as JSON.
    """
    from experts.outside.errors import UserError
    from selfadapt.grid.report import document, write_report
    from selfadapt.grid.results import CELLS, RESULTS, collect_results

    if cells is not None and on is not None:
        raise UserError("--cells is for several independent jobs, --on ray for one; give only one of them")
    if on is not None:
        import selfadapt.grid.on_ray  # noqa: F401 (it asks for Ray before anything else)
    failed = []
    if experiment.endswith(".jsonl"):
        for name, given in (("cells", cells), ("on", on), ("model", model), ("test-size", test_size)):
            if given is not None:
                raise UserError(f"--{name} is for an experiment; a results file has no cells to run: leave it out")
        results = Path(experiment)
        if results.name == RESULTS:
            collect_results(results)
        output = output or results.parent
    else:
        from selfadapt.grid.experiment import find_experiment, read_experiment
        from selfadapt.grid.run import run_experiment

        share = None if cells is None else _share(cells)
        grid = read_experiment(find_experiment(experiment), quick=quick, model=model, test_size=test_size)
        output = output or Path("runs") / grid.name
        results = output / RESULTS
        lines = run_experiment(grid, output, resume=resume, only=only, share=share, on_ray=on == "ray")
        failed = [line for line in lines if line.error]
    if cells is None:
        rows = write_report(results, output)
        show({"results": str(results), "rows": document(rows)}, json, str(output / "report.md"))
    else:  # the other shares may be at work
        show(
            {"results": str(results), "cells": list(dict.fromkeys(line.cell for line in lines))},
            json,
            str(output / CELLS),
        )
    if failed:
        raise UserError(f"failed: {'; '.join(f'{line.cell} ({line.error})' for line in failed)}")


def _share(text: str) -> Share:
    from experts.outside.errors import UserError
    from selfadapt.grid.shares import Share

    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if numbers is None:
        raise UserError(f"--cells takes I/N, the I-th of N shares of the cells, such as 1/4, not {text!r}")
    return Share(*map(int, numbers.groups()))
