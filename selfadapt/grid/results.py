"""The tidy file of a grid: one JSON line for each (method, domain, learning rate, seed, evaluated domain).

Jobs that share a folder never write to the same file: each leaves the lines of a cell in a file of that cell's own,
beside what the cell trained, until one process collects them all in the tidy file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from experts.outside.errors import UserError
from experts.outside.files import atomic_file
from experts.outside.reading import read_objects
from experts.training.statistics import Accuracy

VERSION = 1
BASE = "base"
OPTIONAL = {"mixture"}
"""The fields that a line has only where they say something."""
RESULTS = "results.jsonl"
CELLS = "cells"
"""The folder of what cells trained, and of the lines that jobs have left."""
FILES = {RESULTS, CELLS, "report.md", "accuracy.png", "gain.png", "weights.png"}
"""What a folder of results may hold."""


@dataclass(frozen=True)
class Line:
    """One evaluation of one trained method, of a dispatcher, or of the base; or the failure of a cell, which has an
    `error` alone."""

    method: str
    trained_on: str | None
    """None where nothing is trained: the base, or a dispatcher."""
    learning_rate: float | None
    seed: int
    evaluated_on: str
    settings: str
    """A hash of what the results depend on: a line of another experiment is not taken for one of this."""
    model: str
    error: str | None = None
    adapter: str | None = None
    """The recipe's `adapt.method`."""
    objective: str | None = None
    """The recipe's `training.objective`."""
    reference: bool = False
    """Whether the other methods are tested against it."""
    fingerprint: str | None = None
    """Of the base."""
    scores: str = ""
    """One digit an item of the test split, in order: 1 is right."""
    items: str | None = None
    """A hash of the items: scores are paired only where it is the same."""
    right: int = 0
    n: int = 0
    constant: int = 0
    """How many items the most common answer alone would get right."""
    validation_right: int | None = None
    """At the chosen step, on the validation split."""
    validation_n: int | None = None
    best_step: int | None = None
    parameters: int = 0
    train_seconds: float = 0.0
    """Of the training steps, or of the few-shot search."""
    peak_memory: int | None = None
    """MiB of the process while it trained, or of the accelerator, where there is one."""
    mixture: dict[str, float] | None = None
    """For a dispatcher, the mean weight of each expert over the items."""
    version: int = VERSION

    @property
    def cell(self) -> str:
        if self.trained_on is None:
            return f"{self.method}/{self.evaluated_on}"
        return f"{self.method}/{self.trained_on}/lr{self.learning_rate:g}/seed{self.seed}"

    @property
    def validation(self) -> Accuracy:
        assert self.validation_right is not None
        assert self.validation_n is not None
        return Accuracy(self.validation_right, self.validation_n)


def check_results_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds other things and no results: results have a folder of their own."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if RESULTS not in names and (others := sorted(names - FILES)):
        raise UserError(
            f"{folder} holds things other than results, such as {others[0]}; name a new folder, or one with results"
        )


def read_results(path: str | Path) -> list[Line]:
    """The lines of a results file; none if there is no file.

    Raises:
        UserError: naming the line that is of another version, or damaged.
    """
    path = Path(path)
    if not path.exists():
        return []
    known = {field.name for field in fields(Line)}
    lines = []
    for where, _, entry in read_objects(path):
        version = entry.get("version")
        if version is None:
            raise UserError(f"{where} is not a line of results: remove it, and its cell will be run again")
        if version != VERSION:
            raise UserError(
                f"{where} has version {version} of the results format, but this program reads version {VERSION}; "
                "choose another folder, or use the program that wrote it"
            )
        damaged = UserError(f"{where} is damaged: remove it, and its cell will be run again")
        if set(entry) | OPTIONAL != known:
            raise damaged
        try:
            line = TypeAdapter(Line).validate_python(entry)
        except ValidationError as error:
            raise damaged from error
        if (line.right, line.n) != (line.scores.count("1"), len(line.scores)) or not set(line.scores) <= {"0", "1"}:
            raise damaged
        lines.append(line)
    return lines


def all_results(path: Path) -> list[Line]:
    """The lines of a results file, and those that jobs have left beside it; raises as `read_results` does."""
    left = _left(path)  # read first: what is collected meanwhile is then seen in one of the two
    return _with(read_results(path), left.values())


def add_results(path: Path, new: Sequence[Line]) -> None:
    """Adds the lines of one cell, replacing its older ones; all or none, whoever else is writing."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        _write(path, _with(read_results(path), [new]))


def leave_results(path: Path, new: Sequence[Line]) -> None:
    """Leaves the lines of one cell beside a results file, in a file that nobody else writes."""
    _write(path.parent / CELLS / f"{new[0].cell.replace('/', '--')}.{uuid4().hex}.jsonl", new)


def collect_results(path: Path, order: Sequence[str] = ()) -> None:
    """Collects what jobs have left in the results file, with its lines in the order of these cells."""
    if not order and not _left(path):
        return
    place = {cell: number for number, cell in enumerate(order)}
    with FileLock(path.with_name(f".{path.name}.lock")):
        left, before = _left(path), read_results(path)
        lines = sorted(_with(before, left.values()), key=lambda line: place.get(line.cell, -1))
        if lines != before:
            _write(path, lines)
        for file in left:
            file.unlink()


def _left(path: Path) -> dict[Path, list[Line]]:
    """What jobs have left beside a results file, failures first: a cell may have been tried again."""
    left = {}
    for file in (path.parent / CELLS).glob("*.jsonl"):
        try:
            left[file] = read_results(file)
        except UserError:
            if file.exists():  # and has not been collected meanwhile
                raise
    return dict(sorted(left.items(), key=lambda each: all(line.error is None for line in each[1])))


def _with(lines: Sequence[Line], added: Iterable[Sequence[Line]]) -> list[Line]:
    """The lines, with those of a cell replaced by its added ones."""
    kept = [*lines]
    for new in added:
        cells = {line.cell for line in new}
        kept = [line for line in kept if line.cell not in cells] + [*new]
    return kept


def _write(path: Path, lines: Sequence[Line]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("".join(map(_text, lines)), encoding="utf-8")


def _text(line: Line) -> str:
    entry: dict[str, Any] = asdict(line)
    entry = {name: value for name, value in entry.items() if name not in OPTIONAL or value is not None}
    return json.dumps({"version": entry.pop("version"), **entry}, ensure_ascii=False) + "\n"


def chosen_rate(lines: Sequence[Line]) -> float | None:
    """The learning rate of a method on a domain that was best on the validation split with the smallest seed.

    The smallest of equals; None if every candidate has failed.

    Args:
        lines: of one method, trained on one domain.
    """
    seed = min((line.seed for line in lines), default=0)
    candidates = {line.learning_rate or 0.0: line for line in lines if line.seed == seed and line.error is None}
    return max(candidates, key=lambda rate: (candidates[rate].validation.value, -rate), default=None)
