"""`selfadapt compare EXPERIMENT`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from selfadapt.verbs import show


def compare(
    experiment: Positional[str],
    output: Path | None = None,
    quick: bool = False,
    resume: bool = False,
    only: str | None = None,
    json: bool = False,
) -> None:
    """Train and evaluate a grid of methods × domains × seeds, and write tables and plots.

    Args:
        experiment: a YAML file or a shipped experiment such as methods; or a results.jsonl, of which only tables and
            plots are written anew.
        output: the folder of results and report; by default runs/ and the experiment's name, or where results.jsonl is.
        quick: the smaller grid of the experiment's quick block.
        resume: go on with the results that are there; also for each further process that shares the grid.
        only: only the cells whose names match this pattern, such as 'svf-*/sums/*'.
        json: print the rows of the tables as JSON.
    """
    from experts.outside.errors import UserError
    from experts.outside.files import check_writable
    from selfadapt.grid.report import document, write_report

    failed = []
    if experiment.endswith(".jsonl"):
        results = Path(experiment)
        if not results.is_file():
            raise UserError(f"no such file: {results}")
        output = output or results.parent
        check_writable(output)
    else:
        from selfadapt.grid.experiment import find_experiment, read_experiment
        from selfadapt.grid.run import run_experiment

        grid = read_experiment(find_experiment(experiment), quick=quick)
        output = output or Path("runs") / grid.name
        results = output / "results.jsonl"
        failed = [line for line in run_experiment(grid, output, resume=resume, only=only) if line.error]
    rows = write_report(results, output)
    show({"results": str(results), "rows": document(rows)}, json, str(output / "report.md"))
    if failed:
        raise UserError(f"failed: {'; '.join(f'{line.cell} ({line.error})' for line in failed)}")
