"""A grid's results as tables and plots, from the lines of the results file and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experts.outside.errors import UserError
from experts.outside.files import atomic_file, check_writable
from selfadapt.grid.plots import plot_accuracy, plot_gain, plot_weights
from selfadapt.grid.results import Line, check_results_folder, chosen_rate, read_results
from selfadapt.grid.rows import Row, make_rows


def write_report(results: Path, output: Path) -> list[Row]:
    """Writes `report.md` and its plots into `output`, and returns the rows of the tables.

    Raises:
        UserError: if there are no results, or they cannot be compared; or if `output` is a folder of other things.
    """
    if not results.is_file():
        raise UserError(f"no such file: {results}")
    if output.resolve() != results.parent.resolve():
        check_results_folder(output)
    check_writable(output)
    lines = read_results(results)
    rows = make_rows(lines)
    if not rows:
        raise UserError(f"{results} has no results to report")
    with atomic_file(output / "report.md") as temporary:
        temporary.write_text(page(lines, rows), encoding="utf-8")
    plots = {"accuracy.png": plot_accuracy}
    if any(row.trained_on for row in rows):
        plots["gain.png"] = plot_gain
    if any(row.mixture for row in rows):
        plots["weights.png"] = plot_weights
    for name, plot in plots.items():
        plot(rows, output / name)
    return rows


def page(lines: Sequence[Line], rows: Sequence[Row]) -> str:
    """The text of `report.md`."""
    comparisons = len({row.comparison(other) for row in rows for other in row.against})
    base = next(line for line in lines if line.error is None)
    trained = dict.fromkeys(row.trained_on for row in rows if row.trained_on)
    sections = [f"## {name}\n\n{_table([row for row in rows if row.evaluated_on == name])}" for name in trained]
    for name in dict.fromkeys(row.evaluated_on for row in rows if row.evaluated_on not in trained):
        sections.append(f"## {name} (unseen)\n\n{_table([row for row in rows if row.evaluated_on == name])}")
    return "\n\n".join(
        [
            f"""# Methods compared on `{base.model}` (fingerprint `{base.fingerprint}`)

Greedy answers to the same items of the test split for every method. The step and the learning rate were chosen on the
validation split. Intervals are 95 %. With one seed they are Wilson's and cover other items; with several they are
around the mean over the seeds and cover other items and other seeds, with Student's t because the seeds are few.
Differences are in points, with the p-value of an exact sign-flip permutation test over the items (for one seed each,
McNemar's exact test). The test says something about these trained models on other items, not about other seeds. Its
p-values are adjusted by Holm's method for all {comparisons} comparisons here, each counted once; those below 0.05 are
in **bold**. Seconds are those of the training steps (or a few-shot search) alone, averaged over the seeds; memory is
the process's peak, the base included, and the largest over the seeds.""",
            *sections,
            *_weights(rows),
            *_learning_rates(lines),
            *_failures(lines),
            "![accuracy](accuracy.png)\n"
            + ("\n![gain against parameters](gain.png)\n" if trained else "")
            + ("\n![weights of the experts](weights.png)\n" if any(row.mixture for row in rows) else ""),
        ]
    )


def _table(rows: Sequence[Row]) -> str:
    """The table of the rows on one domain."""
    rivals = list(dict.fromkeys(other for row in rows for other in row.against))
    several = len({row.trained_on for row in rows if row.trained_on}) > 1
    head = ["method", *(["trained on"] if several else []), f"right of {rows[0].n}", "seeds"]
    head += [f"against {other}" for other in rivals]
    head += ["parameters", "seconds", "MiB", "learning rate", "best step"]
    body = []
    for row in rows:
        low, high = row.interval
        cells = [row.method, *([row.trained_on or ""] if several else [])]
        cells += [f"{row.accuracy:.1%} ({low:.1%} to {high:.1%})", str(len(row.seeds)) if row.trained_on else ""]
        cells += [str(row.against.get(other, "")) for other in rivals]
        if row.trained_on:
            cells += [f"{row.parameters:,}", f"{row.train_seconds:.0f}", f"{row.peak_memory or ''}"]
            cells += [f"{row.learning_rate:g}", ", ".join(map(str, row.best_steps))]
        else:
            cells += ["", f"{row.train_seconds:.0f}" if row.train_seconds else "", *[""] * 3]
        body.append(cells)
    width = len(head)
    body.append(["always the most common answer"] + [""] * (width - 1))
    body[-1][2 if several else 1] = f"{rows[0].constant:.1%}"
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * width, *body])


def _weights(rows: Sequence[Row]) -> list[str]:
    """What each dispatcher made of the experts, on average over the items."""
    mixed = [(row.evaluated_on, row.method, row.mixture) for row in rows if row.mixture]
    if not mixed:
        return []
    experts = list(dict.fromkeys(name for *_, mixture in mixed for name in mixture))
    table = [["domain", "dispatcher", *experts], ["---"] * (2 + len(experts))]
    table += [[domain, method, *(f"{mixture.get(e, 0):.2f}" for e in experts)] for domain, method, mixture in mixed]
    head = """## Weights of the experts

Means over the items; what is left of 1 belongs to the base. The weights of `few-shot`, the same for every item, were
found by a search on a few training examples, and may be negative or sum to more than 1.

"""
    return [head + "\n".join(f"| {' | '.join(cells)} |" for cells in table)]


def _learning_rates(lines: Sequence[Line]) -> list[str]:
    """What the candidates reached on the validation split, if there were several."""
    tried: dict[tuple[str, str], dict[float, Line]] = {}
    for line in sorted(lines, key=lambda line: -line.seed):  # the smallest seed stays
        if line.trained_on and line.learning_rate:
            tried.setdefault((line.method, line.trained_on), {})[line.learning_rate] = line
    body = []
    for (method, domain), candidates in sorted(tried.items()):
        chosen = chosen_rate(list(candidates.values()))
        if len(candidates) > 1:
            figures = []
            for rate, line in sorted(candidates.items()):
                figure = f"{rate:g}: " + ("failed" if line.error else f"{line.validation.value:.1%}")
                figures.append(f"**{figure}**" if rate == chosen else figure)
            body.append(f"| {method} | {domain} | {', '.join(figures)} |")
    if not body:
        return []
    head = [
        "## Learning rates",
        "",
        "| method | domain | right on the validation split, chosen in bold |",
        "|---|---|---|",
    ]
    return ["\n".join([*head, *body])]


def _failures(lines: Sequence[Line]) -> list[str]:
    failed = [f"- {line.cell}: {line.error}" for line in lines if line.error]
    return ["\n".join(["## Failed cells", "", *failed])] if failed else []


def document(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The rows as JSON."""
    return [asdict(row) for row in rows]
