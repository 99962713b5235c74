"""A grid's rows as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experts.outside.plots import GREY, Mark, mark, percent, picture, plot_intervals
from selfadapt.grid.results import BASE
from selfadapt.grid.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _marks(rows: Sequence[Row]) -> dict[str, Mark]:
    """How each method is drawn; the same in all plots of a report."""
    methods = dict.fromkeys(row.method for row in rows if row.method != BASE)
    return {BASE: Mark(GREY, "o", "")} | {method: mark(place) for place, method in enumerate(methods)}


def _legend(figure: Figure, place: Any, **options: Any) -> None:
    """Draws one legend for all panels, with each name once; `place` is matplotlib's `loc`."""
    shown = [axes.get_legend_handles_labels() for axes in figure.axes]
    named = {name: drawn for handles, names in shown for drawn, name in zip(handles, names, strict=True)}
    figure.legend([*named.values()], [*named], loc=place, **options)


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """One panel an evaluated domain: every method with its interval, the base, and the most common answer."""
    panels = list(dict.fromkeys(row.evaluated_on for row in rows))
    shown = [[row for row in rows if row.evaluated_on == name] for name in panels]
    marks = _marks(rows)
    heights = [1.0 + 0.3 * len(own) for own in shown]  # inches
    with picture(path, 8, 0.4 + sum(heights)) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)
        for axes, name, own in zip(grid.flat, panels, shown, strict=True):
            several = len({row.trained_on for row in own if row.trained_on}) > 1
            names = [row.method + (f" ({row.trained_on})" if several and row.trained_on else "") for row in own]
            for y, row in enumerate(own):
                color, marker, _ = marks[row.method]
                plot_intervals(axes, [y], [row.accuracy], [row.interval], flat=True, color=color, marker=marker)
                if row.method == BASE:
                    axes.axvline(row.accuracy, color=GREY, linestyle="--", linewidth=1, label="base")
            axes.axvline(own[0].constant, color="black", linestyle=":", linewidth=1.2, label="most common answer")
            axes.set(title=name, yticks=range(len(own)), yticklabels=names, xlim=(0, 1))
            axes.set_ylim(len(own) - 0.5, -0.5)  # the first on top
            axes.grid(visible=False, axis="y")
            axes.tick_params(labelbottom=True)
        axes.set_xlabel("right answers, with 95 % intervals")
        axes.xaxis.set_major_formatter(percent())
        _legend(figure, "outside lower center", ncols=2)


def plot_gain(rows: Sequence[Row], path: Path) -> None:
    """Points gained over the base on the trained domain, against the number of trained parameters."""
    own = [row for row in rows if row.trained_on == row.evaluated_on and BASE in row.against]
    with picture(path, 8, 4) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1, label=BASE)
        for method, (color, marker, _) in _marks(rows).items():
            points = [(row.parameters, 100 * row.against[BASE].points) for row in own if row.method == method]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=color, label=method, alpha=0.85)
        axes.set(xscale="log", xlabel="trained parameters", ylabel="points over the base")
        _legend(figure, "outside right upper")


def plot_weights(rows: Sequence[Row], path: Path) -> None:
    """One panel an unseen domain: the mean weight that each dispatcher gives each expert."""
    mixed = [row for row in rows if row.mixture]
    panels = list(dict.fromkeys(row.evaluated_on for row in mixed))
    methods = list(dict.fromkeys(row.method for row in mixed))
    experts = list(dict.fromkeys(name for row in mixed for name in row.mixture or {}))
    marks = _marks(rows)
    width = 0.8 / len(methods)
    with picture(path, 8, 0.4 + 2.2 * len(panels)) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharey=True)
        for axes, name in zip(grid.flat, panels, strict=True):
            for row in mixed:
                if row.evaluated_on == name:
                    places = np.arange(len(experts)) + (methods.index(row.method) - (len(methods) - 1) / 2) * width
                    heights = [(row.mixture or {}).get(expert, 0.0) for expert in experts]
                    color, _, hatch = marks[row.method]
                    axes.bar(places, heights, width, color=color, hatch=hatch, edgecolor="white", label=row.method)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(title=name, ylabel="mean weight", xticks=range(len(experts)), xticklabels=experts)
            axes.grid(visible=False, axis="x")
        _legend(figure, "outside lower center", ncols=len(methods))
