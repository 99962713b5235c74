"""A grid's results as tables and plots, from the lines of the results file and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experts.errors import UserError
from experts.files import atomic_file
from selfadapt.results import BASE, Line, chosen_rate, read_results
from selfadapt.statistics import holm, interval, sign_flip


@dataclass(frozen=True)
class Paired:
    """A method against another one on the same items."""

    points: float
    """Difference of the shares of right answers, in [−1, 1]."""
    p: float
    p_holm: float = 1.0
    """Adjusted for all comparisons of the results file."""


@dataclass(frozen=True)
class Row:
    """A method, trained on one domain and evaluated on one: all its seeds at the chosen learning rate.

    Or the base, or a dispatcher, which are trained on none.
    """

    method: str
    trained_on: str | None
    evaluated_on: str
    learning_rate: float | None
    seeds: list[int]
    n: int
    accuracy: float
    """Share of right answers, the mean over the seeds."""
    interval: tuple[float, float]
    constant: float
    """Share that the most common answer alone would get right."""
    parameters: int
    train_seconds: float
    """The mean over the seeds."""
    peak_memory: int | None
    """MiB, the largest of the seeds'."""
    best_steps: list[int]
    against: dict[str, Paired]
    """The base, and every reference that was trained on the same domain; for a dispatcher, on any."""
    mixture: dict[str, float] | None
    """A dispatcher's: the mean weight of each expert over the items."""


def write_report(results: Path, output: Path) -> list[Row]:
    """Writes `report.md` and its plots into `output`, and returns the rows of the tables.

    Raises:
        UserError: if there are no results, or they cannot be compared.
    """
    lines = read_results(results)
    rows = make_rows(lines)
    if not rows:
        raise UserError(f"{results} has no results to report")
    with atomic_file(output / "report.md") as temporary:
        temporary.write_text(page(lines, rows), encoding="utf-8")
    plots = {"accuracy.png": plot_accuracy, "gain.png": plot_gain}
    if any(row.mixture for row in rows):
        plots["weights.png"] = plot_weights
    for name, plot in plots.items():
        with atomic_file(output / name) as temporary:
            plot(rows, temporary)
    return rows


def make_rows(lines: Sequence[Line]) -> list[Row]:
    """One row for each method, trained domain and evaluated domain that has results, base first."""
    groups: dict[tuple[str, str, str | None], list[Line]] = {}
    for line in lines:
        if line.error is None and (line.trained_on is None or line.learning_rate == _chosen(lines, line)):
            groups.setdefault((line.evaluated_on, line.method, line.trained_on), []).append(line)
    for name in {name for name, _, _ in groups}:
        used = [line for (where, _, _), group in groups.items() if where == name for line in group]
        if len({(line.items, line.fingerprint) for line in used}) > 1:
            raise UserError(f"the results on {name} are of different items or bases, and cannot be compared")

    rows = []
    for (name, method, trained_on), group in groups.items():
        scores = _scores(group)
        rivals = {BASE: groups.get((name, BASE, None))} | {
            other if trained_on else f"{other} ({domain})": rival
            for (where, other, domain), rival in groups.items()
            if where == name and rival[0].reference and trained_on in (domain, None)
        }
        against = {
            other: Paired(float(scores.mean() - _scores(rival).mean()), sign_flip(scores, _scores(rival)))
            for other, rival in rivals.items()
            if rival and method not in (other, BASE)
        }
        rows.append(
            Row(
                method=method,
                trained_on=trained_on,
                evaluated_on=name,
                learning_rate=group[0].learning_rate,
                seeds=[line.seed for line in group],
                n=group[0].n,
                accuracy=float(scores.mean()),
                interval=interval(scores),
                constant=group[0].constant / group[0].n,
                parameters=group[0].parameters,
                train_seconds=float(np.mean([line.train_seconds for line in group])),
                peak_memory=max((line.peak_memory for line in group if line.peak_memory), default=None),
                best_steps=[line.best_step for line in group if line.best_step is not None],
                against=against,
                mixture=group[0].mixture,
            )
        )
    return sorted(_adjusted(rows), key=lambda row: (row.evaluated_on, row.trained_on or "", row.method))


def _chosen(lines: Sequence[Line], line: Line) -> float | None:
    return chosen_rate([each for each in lines if (each.method, each.trained_on) == (line.method, line.trained_on)])


def _scores(lines: Sequence[Line]) -> np.ndarray:
    return np.array([[int(digit) for digit in line.scores] for line in lines])  # [seeds, items]


def _adjusted(rows: list[Row]) -> list[Row]:
    """The rows with Holm's correction for all comparisons in them."""
    adjusted = iter(holm([paired.p for row in rows for paired in row.against.values()]))
    return [
        replace(row, against={other: replace(p, p_holm=next(adjusted)) for other, p in row.against.items()})
        for row in rows
    ]


def page(lines: Sequence[Line], rows: Sequence[Row]) -> str:
    """`report.md`."""
    comparisons = sum(len(row.against) for row in rows)
    base = next(line for line in lines if line.error is None)
    trained = dict.fromkeys(row.trained_on for row in rows if row.trained_on)
    sections = [f"## {name}\n\n{_table([row for row in rows if row.evaluated_on == name])}" for name in trained]
    for name in dict.fromkeys(row.evaluated_on for row in rows if row.evaluated_on not in trained):
        sections.append(f"## {name} (unseen)\n\n{_table([row for row in rows if row.evaluated_on == name])}")
    return "\n\n".join(
        [
            f"""# Methods compared on `{base.model}` (fingerprint `{base.fingerprint}`)

Greedy answers to the same items of the test split for every method. The step and the learning rate were chosen on the
validation split. Intervals are 95 %: Wilson's for one seed; for several, the mean over the seeds with a bootstrap
over seeds and items, which with few seeds understates what another seed may bring. Differences are in points, with
the p-value of an exact sign-flip permutation test over the items (for one seed each, McNemar's exact test), adjusted
after Holm for all {comparisons} comparisons here, and **bold** where that is below 0.05. Seconds are those of the
training steps (or a few-shot search) alone, a mean over the seeds; memory is the process's peak, the base included.""",
            *sections,
            *_weights(rows),
            *_learning_rates(lines),
            *_failures(lines),
            "![accuracy](accuracy.png)\n\n![gain against parameters](gain.png)\n"
            + ("\n![weights of the experts](weights.png)\n" if any(row.mixture for row in rows) else ""),
        ]
    )


def _table(rows: Sequence[Row]) -> str:
    """Of the rows on one domain."""
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
        cells += [_difference(row.against.get(other)) for other in rivals]
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


def _difference(paired: Paired | None) -> str:
    if paired is None:
        return ""
    text = f"{100 * paired.points:+.1f} (p = {paired.p_holm:.2g})"
    return f"**{text}**" if paired.p_holm < 0.05 else text


def _weights(rows: Sequence[Row]) -> list[str]:
    """What each dispatcher made of the experts, on average over the items."""
    mixed = [(row.evaluated_on, row.method, row.mixture) for row in rows if row.mixture]
    if not mixed:
        return []
    experts = list(dict.fromkeys(name for *_, mixture in mixed for name in mixture))
    table = [["domain", "dispatcher", *experts], ["---"] * (2 + len(experts))]
    table += [[domain, method, *(f"{mixture.get(e, 0):.2f}" for e in experts)] for domain, method, mixture in mixed]
    head = """## Weights of the experts

Means over the items; what is left over of 1 belongs to the base. Those of `few-shot`, the same for every item, were
searched on a few training examples, and may be negative or sum to more.

"""
    return [head + "\n".join(f"| {' | '.join(cells)} |" for cells in table)]


def _learning_rates(lines: Sequence[Line]) -> list[str]:
    """What the candidates reached on the validation split, where there were several."""
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


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    return {method: f"C{i}" for i, method in enumerate(dict.fromkeys(row.method for row in rows if row.method != BASE))}


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """One panel an evaluated domain: every method with its interval, the base, and the most common answer."""
    from matplotlib.figure import Figure  # without pyplot, which would start a GUI backend

    panels = list(dict.fromkeys(row.evaluated_on for row in rows))
    shown = [[row for row in rows if row.evaluated_on == name] for name in panels]
    height = 1 + 0.3 * max(map(len, shown))
    figure = Figure(figsize=(8, height * len(panels)), layout="constrained")
    colours = _colours(rows)
    for axes, name, own in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, shown, strict=True):
        for y, row in enumerate(reversed(own)):
            low, high = row.interval
            errors = [[max(0.0, row.accuracy - low)], [max(0.0, high - row.accuracy)]]
            colour = colours.get(row.method, "black")
            axes.errorbar([row.accuracy], [y], xerr=errors, marker="o", capsize=3, color=colour)
            if row.method == BASE:
                axes.axvline(row.accuracy, color="black", linestyle="--", linewidth=0.8, label="base")
        axes.axvline(own[0].constant, color="tab:gray", linestyle=":", linewidth=0.8, label="most common answer")
        axes.legend(loc="lower right", fontsize="small")
        several = len({row.trained_on for row in own if row.trained_on}) > 1
        labels = [row.method + (f" ({row.trained_on})" if several and row.trained_on else "") for row in reversed(own)]
        axes.set(title=name, xlabel="share of right answers", yticks=range(len(own)), yticklabels=labels, xlim=(0, 1))
    figure.savefig(path, format="png", dpi=120)


def plot_gain(rows: Sequence[Row], path: Path) -> None:
    """Points gained over the base on the trained domain, against the number of trained parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    own = [row for row in rows if row.trained_on == row.evaluated_on and BASE in row.against]
    for method, colour in _colours(rows).items():
        points = [(row.parameters, 100 * row.against[BASE].points) for row in own if row.method == method]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, label=method)
    axes.axhline(0, color="black", linestyle="--", linewidth=0.8)
    axes.set(xscale="log", xlabel="trained parameters", ylabel="points over the base")
    if axes.lines[1:]:
        axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_weights(rows: Sequence[Row], path: Path) -> None:
    """One panel an unseen domain: the mean weight that each dispatcher gives each expert."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    mixed = [row for row in rows if row.mixture]
    panels = list(dict.fromkeys(row.evaluated_on for row in mixed))
    methods = list(dict.fromkeys(row.method for row in mixed))
    experts = list(dict.fromkeys(name for row in mixed for name in row.mixture or {}))
    colours = _colours(rows)
    figure = Figure(figsize=(8, 2.5 * len(panels)), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(len(panels), 1, sharey=True)), panels, strict=True):
        for row in mixed:
            if row.evaluated_on == name:
                offset = (methods.index(row.method) - (len(methods) - 1) / 2) * 0.8 / len(methods)
                heights = [(row.mixture or {}).get(expert, 0.0) for expert in experts]
                axes.bar(np.arange(len(experts)) + offset, heights, 0.8 / len(methods), color=colours[row.method])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=name, ylabel="mean weight", xticks=range(len(experts)), xticklabels=experts)
    figure.legend(
        handles=[Patch(color=colours[method], label=method) for method in methods],
        loc="outside lower center",
        ncols=len(methods),
    )
    figure.savefig(path, format="png", dpi=120)


def document(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The rows as JSON."""
    return [asdict(row) for row in rows]
