"""How a training went, from its log, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experts.training.statistics import Accuracy
from selfadapt.page.drawing import Line, curves, figure
from selfadapt.page.looks import COLORS, GREY


def training_curve(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """The share of right samples by step and of right answers by validation; without a judge, the losses.

    Args:
        entries: of a `training_log.jsonl`.
    """
    sampled = {entry["step"]: entry["accuracy"] for entry in entries if "accuracy" in entry}
    judged = {entry["step"]: Accuracy(entry["right"], entry["n"]) for entry in entries if "right" in entry}
    if sampled or judged:
        lines = [
            Line("sampled while training", sampled, GREY, dashed=True),
            Line(
                "validation, with its 95 % interval",
                {step: own.value for step, own in judged.items()},
                COLORS[1],
                between={step: own.interval for step, own in judged.items()},
            ),
        ]
        alt = f"Training of {name}: share of right answers by step. {_ends(lines)}"
        return figure(curves(lines, alt, low=0, high=1, percent=True), alt)
    losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    validated = {entry["step"]: entry["validation_loss"] for entry in entries if "validation_loss" in entry}
    lines = [Line("loss while training", losses, GREY, dashed=True), Line("loss, validation", validated, COLORS[1])]
    values = [*losses.values(), *validated.values()]
    if not values:
        return ""
    alt = f"Training of {name}: nats a token by step. {_ends(lines, percent=False)}"
    return figure(curves(lines, alt, low=min(0.0, *values), high=max(values)), alt)


def _ends(lines: Sequence[Line], percent: bool = True) -> str:
    said = []
    for line in lines:
        if line.points:
            first, last = line.points[min(line.points)], line.points[max(line.points)]
            said.append(
                f"{line.name}: from {first:.0%} to {last:.0%}" if percent else f"{line.name}: {first:.2f} to {last:.2f}"
            )
    return "; ".join(said) + "." if said else ""
