"""The training curve as a picture, drawn from the log alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experts.training.statistics import Accuracy


def plot_curve(entries: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Sampled accuracy of each step, if any, and greedy validation accuracy with its 95 % interval, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot, which would start a GUI backend

    steps = [e for e in entries if "accuracy" in e]
    validations = {e["step"]: Accuracy(e["right"], e["n"]) for e in entries if "right" in e}
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    if steps:
        sampled = [e["accuracy"] for e in steps]
        axes.plot([e["step"] for e in steps], sampled, color="tab:gray", label="sampled, training")
    values = [v.value for v in validations.values()]
    below = [v.value - v.interval[0] for v in validations.values()]
    above = [v.interval[1] - v.value for v in validations.values()]
    axes.errorbar(
        list(validations),
        values,
        yerr=[below, above],
        marker="o",
        capsize=3,
        color="tab:blue",
        label="greedy, validation",
    )
    axes.set(title=title, xlabel="optimiser step", ylabel="share of right answers", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
