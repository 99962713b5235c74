"""A dispatcher by itself: calibrates and measures it on labelled prompts, and says who would answer.

A report shows in figures, a page and a plot how well it tells the domains apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from dispatch import Calibration, PromptDispatcher, calibration_path
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError, unknown
from experts.outside.files import atomic_file, check_writable, write_json
from experts.outside.plots import AMOUNTS, heat_map, picture
from experts.outside.reading import read_objects
from experts.training.statistics import Accuracy
from selfadapt.base_models import BaseOptions
from selfadapt.own_report import check_replaceable
from selfadapt.two_pass import SelfAdaptiveModel, find_library

CALIBRATED = ("prompt", "classifier")
REPORTS = ("report.json", "report.md", "confusion.png")
REPORTED = ("labels", "confusion", "coverage")
"""What a report is known by."""
BASE = "base"  # the label of prompts that belong to no expert
NEW_TOKENS = 128  # per answer, where pass one's time is compared with pass two's
TIMED = 16  # prompts
COVERAGES = [round(0.5 + 0.05 * step, 2) for step in range(11)]


class Labelled(NamedTuple):
    """A prompt, and the expert it belongs to or "base"."""

    prompt: str
    label: str


@dataclass(frozen=True)
class Asked:
    """What a dispatcher is asked to do; labelled prompts are files that `read_labelled` reads."""

    prompts: tuple[str, ...] = ()
    """One user turn each."""
    calibrate: Path | None = None
    """Labelled prompts to calibrate it on."""
    evaluate: Path | None = None
    """Labelled prompts to measure it on."""
    output: Path = Path("runs/dispatch")
    """The folder for the report of `evaluate`."""


@dataclass(frozen=True)
class Dispatched:
    """The results; None for what was not asked for."""

    calibration: Path | None
    """The file in the library."""
    report: dict[str, Any] | None
    """As `evaluate_dispatcher` returns it."""
    mixture: Mixture | None
    """A row for each prompt."""


def ask_dispatcher(
    name: str,
    asked: Asked,
    model: str | None = None,
    library: str | Path | None = None,
    **base_options: Unpack[BaseOptions],
) -> Dispatched:
    """Calibrates a dispatcher, measures it, and dispatches prompts, in this order: whichever is asked for.

    Mistakes that can be found without the base are found before it is loaded.

    Args:
        name, model, library, base_options: as `SelfAdaptiveModel.from_pretrained` takes them; `name` is its `dispatch`.

    Raises:
        UserError: if nothing is asked for; as `read_labelled` and `check_calibration` do; if the library, or the
            folder of the report, cannot be written; or if the report would replace another file.
    """
    if not asked.prompts and asked.evaluate is None and asked.calibrate is None:
        raise UserError("there is no prompt to dispatch; give one or more")
    experts = find_library(model, library)
    to_calibrate = None if asked.calibrate is None else read_labelled(asked.calibrate, experts)
    to_evaluate = None if asked.evaluate is None else read_labelled(asked.evaluate, experts)
    if to_calibrate is not None:
        check_calibration(name, experts, to_calibrate)
        check_writable(experts.folder)
    if to_evaluate is not None:
        check_replaceable(asked.output, REPORTS, REPORTED)
        check_writable(asked.output)
    adaptive = SelfAdaptiveModel.from_pretrained(model, experts, name, **base_options)
    return Dispatched(
        None if to_calibrate is None else calibrate_dispatcher(adaptive, experts, name, to_calibrate),
        None if to_evaluate is None else evaluate_dispatcher(adaptive, experts, to_evaluate, asked.output),
        adaptive.dispatch(asked.prompts) if asked.prompts else None,
    )


def read_labelled(path: Path, library: ExpertLibrary) -> list[Labelled]:
    """The rows of a JSON Lines file with `prompt` and `label`.

    Raises:
        UserError: naming the line, if one is malformed or its label is no expert of the library.
    """
    rows = []
    for where, _, row in read_objects(path):
        prompt, label = row.get("prompt"), row.get("label")
        if not isinstance(prompt, str) or not isinstance(label, str):
            raise UserError(f"{where}: must be an object with prompt and label, both strings")
        if label not in (*library.names, BASE):
            raise UserError(f"{where}: {unknown('expert', label, [*library.names, BASE])}")
        rows.append(Labelled(prompt, label))
    if not rows:
        raise UserError(f"{path}: there are no rows in it")
    return rows


def check_calibration(name: str, library: ExpertLibrary, rows: list[Labelled]) -> None:
    """Raises UserError if the dispatcher takes no calibration, there are no experts, or one has no prompt in `rows`."""
    if name not in CALIBRATED:
        raise UserError(f"only the dispatchers {' and '.join(CALIBRATED)} can be calibrated, not {name}")
    if not library.names:
        raise UserError(
            f"the library {library.folder} is empty, so there is nothing to calibrate; add experts to it first"
        )
    for expert in library.names:
        if all(row.label != expert for row in rows):
            raise UserError(f"no prompt is labelled {expert!r}; give some for every expert")


def calibrate_dispatcher(model: SelfAdaptiveModel, library: ExpertLibrary, name: str, rows: list[Labelled]) -> Path:
    """Fits the calibration of the prompt dispatcher on labelled prompts and stores it in the library.

    Raises:
        UserError: as `check_calibration` does.
    """
    check_calibration(name, library, rows)
    dispatcher = model.dispatcher
    assert isinstance(dispatcher, PromptDispatcher)
    rows = [row for row in rows if row.label != BASE]
    labels = torch.tensor([library.names.index(row.label) for row in rows])
    dispatcher.calibration = Calibration.fitted(dispatcher.scores([row.prompt for row in rows]), labels)
    path = calibration_path(library, name)
    dispatcher.calibration.write(path, library.names)
    return path


def evaluate_dispatcher(
    model: SelfAdaptiveModel, library: ExpertLibrary, rows: list[Labelled], output: Path
) -> dict[str, Any]:
    """Dispatches labelled prompts and writes `report.json`, `report.md` and `confusion.png` into `output`.

    Returns:
        The report: accuracy with its 95 % Wilson interval, the confusion matrix, accuracy by coverage, seconds.
    """
    start = time.perf_counter()
    mixture = model.dispatch([row.prompt for row in rows])
    seconds = time.perf_counter() - start
    labels = [*library.names, BASE]
    chosen = _chosen(mixture)
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.long)
    for row, name in zip(rows, chosen, strict=True):
        confusion[labels.index(row.label), labels.index(name)] += 1
    right = torch.tensor([row.label == name for row, name in zip(rows, chosen, strict=True)])
    accuracy = Accuracy(int(right.sum()), len(rows))
    timed = model.generate([row.prompt for row in rows[:TIMED]], max_new_tokens=NEW_TOKENS)[0].seconds
    report = {
        "n": accuracy.n,
        "accuracy": accuracy.value,
        "interval": accuracy.interval,
        "labels": labels,
        "confusion": confusion.tolist(),
        "coverage": _by_coverage(right, mixture.confidence),
        "milliseconds_per_prompt": 1000 * seconds / len(rows),
        "share_of_two_passes": timed.dispatch / (timed.dispatch + timed.answer),
    }
    write_json(output / "report.json", report)
    with atomic_file(output / "report.md") as temporary:
        temporary.write_text(_page(report, accuracy), encoding="utf-8")
    _plot(confusion, labels, output / "confusion.png")
    return report


def _chosen(mixture: Mixture) -> list[str]:
    """The expert with the largest weight in each row, or the base."""
    rows = [mixture[row] for row in range(len(mixture))]
    return [max(row, key=lambda name: row[name]) if row else BASE for row in rows]


def _by_coverage(right: Tensor, confidence: Tensor | None) -> list[dict[str, float]]:
    """Accuracy of the most confident prompts, as an abstention threshold lets fewer of them through."""
    if confidence is None:
        return []
    order = confidence.argsort(descending=True)
    rows = []
    for coverage in COVERAGES:
        kept = order[: max(1, round(coverage * len(order)))]
        rows.append(
            {
                "coverage": coverage,
                "threshold": confidence[kept].min().item(),
                "accuracy": right[kept].float().mean().item(),
            }
        )
    return rows


def _page(report: dict[str, Any], accuracy: Accuracy) -> str:
    header = " | ".join(report["labels"])
    matrix = "\n".join(
        f"| **{label}** | {' | '.join(map(str, row))} |"
        for label, row in zip(report["labels"], report["confusion"], strict=True)
        if sum(row)
    )
    curve = "\n".join(
        f"| {row['coverage']:.0%} | {row['threshold']:.2f} | {row['accuracy']:.1%} |" for row in report["coverage"]
    )
    return f"""# Dispatch

Accuracy {accuracy}. Dispatch takes {report["milliseconds_per_prompt"]:.1f} ms per prompt, and
{report["share_of_two_passes"]:.1%} of the time of both passes with {TIMED} prompts and {NEW_TOKENS} new tokens.

| label, chosen → | {header} |
|---|{"---|" * len(report["labels"])}
{matrix}

![confusion matrix](confusion.png)

| most confident | confidence at least | right |
|---|---|---|
{curve}
"""


def _plot(confusion: Tensor, labels: list[str], path: Path) -> None:
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    with picture(path, 2.2 + 0.7 * len(labels), 1.4 + 0.7 * len(labels)) as figure:
        axes = figure.subplots()
        heat_map(axes, shares.numpy(), cmap=AMOUNTS, vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="chosen", ylabel="label")
        for row in range(len(labels)):
            for column in range(len(labels)):
                if count := int(confusion[row, column]):
                    dark = shares[row, column] > 0.5
                    axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
