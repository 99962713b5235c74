"""What a grid says of each method: accuracy, interval, and paired tests against the base and the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experts.outside.errors import UserError
from experts.training.statistics import holm, interval, sign_flip
from selfadapt.grid.results import BASE, Line, chosen_rate


@dataclass(frozen=True)
class Paired:
    """A method against another one on the same items."""

    points: float
    """Difference of the shares of right answers, in [−1, 1]."""
    p: float
    p_holm: float = 1.0
    """Adjusted for all comparisons that it stands beside."""

    def __str__(self) -> str:
        text = f"{100 * self.points:+.1f} (p = {self.p_holm:.2g})"
        return f"**{text}**" if self.p_holm < 0.05 else text


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
    """The base, and every reference that was trained on the same domain; for a dispatcher, on any, or on none."""
    mixture: dict[str, float] | None
    """A dispatcher's: the mean weight of each expert over the items."""

    def comparison(self, other: str) -> tuple[str, str | None, frozenset[str]]:
        """What tells the comparison with `other` from all others; the same from both sides, of two references."""
        return self.evaluated_on, self.trained_on, frozenset([self.method, other])


def make_rows(lines: Sequence[Line]) -> list[Row]:
    """One row for each method, trained domain and evaluated domain that has results, base first."""
    groups: dict[tuple[str, str, str | None], list[Line]] = {}
    for line in lines:
        if line.error is None and (line.trained_on is None or line.learning_rate == _chosen(lines, line)):
            groups.setdefault((line.evaluated_on, line.method, line.trained_on), []).append(line)
    for name in {name for name, _, _ in groups}:
        used = [line for (where, _, _), group in groups.items() if where == name for line in group]
        if len({(line.items, line.fingerprint) for line in used}) > 1:
            raise UserError(
                f"the results on {name} are for different items or bases, and cannot be compared; run the experiment "
                "again in a new folder"
            )

    rows = []
    for (name, method, trained_on), group in groups.items():
        scores = _scores(group)
        rivals = {BASE: groups.get((name, BASE, None))} | {
            other if trained_on or domain is None else f"{other} ({domain})": rival
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
    """The rows with Holm's correction for all comparisons in them, each counted once."""
    p_values = {row.comparison(other): paired.p for row in rows for other, paired in row.against.items()}
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return [
        replace(
            row, against={other: replace(p, p_holm=adjusted[row.comparison(other)]) for other, p in row.against.items()}
        )
        for row in rows
    ]
