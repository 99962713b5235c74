"""A grid's rows as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfadapt.grid.results import BASE
from selfadapt.grid.rows import Row


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
