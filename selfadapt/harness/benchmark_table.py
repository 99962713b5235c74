"""What methods scored on benchmarks, as one table: shares of right answers, their intervals, and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from experts.training.statistics import holm, interval, sign_flip
from selfadapt.grid.rows import Paired


@dataclass(frozen=True)
class Judged:
    """A method's scores on a benchmark."""

    method: str
    benchmark: str
    metric: str
    scores: list[list[int]]
    """0 or 1, [descriptions, questions]; one row if no adapters are written."""
    constant: float | None
    """The share that always taking the most common choice would get right; None if there are no choices."""


@dataclass(frozen=True)
class Row:
    """What the table says of a method on a benchmark."""

    benchmark: str
    metric: str
    method: str
    n: int
    accuracy: float
    """Share of right answers, the mean over the descriptions."""
    interval: tuple[float, float]
    constant: float | None
    against: Paired | None
    """Against the reference on the same questions; None for the reference itself."""
    scores: list[str]
    """One digit a question, in order, for each description: 1 is right."""


@dataclass(frozen=True)
class Compared:
    """The results of several methods on the same questions."""

    reference: str
    """The method that all are compared with."""
    rows: list[Row]
    """By benchmark, and for each the methods in their order."""

    @property
    def means(self) -> dict[str, float]:
        """Method → its share of right answers, the mean over the benchmarks."""
        methods = dict.fromkeys(row.method for row in self.rows)
        return {name: float(np.mean([row.accuracy for row in self.rows if row.method == name])) for name in methods}

    def table(self) -> str:
        """One table in Markdown, and how to read it."""
        body = []
        for benchmark in dict.fromkeys(row.benchmark for row in self.rows):
            own = [row for row in self.rows if row.benchmark == benchmark]
            for row in own:
                low, high = row.interval
                right = f"{row.accuracy:.1%} ({low:.1%} to {high:.1%})"
                body.append([benchmark, row.metric, str(row.n), row.method, str(len(row.scores)), right])
                body[-1].append("" if row.against is None else str(row.against))
            if own[0].constant is not None:
                line = [benchmark, own[0].metric, str(own[0].n), "always the most common answer", ""]
                body.append([*line, f"{own[0].constant:.1%}", ""])
        count = len({row.benchmark for row in self.rows})
        if count > 1:
            for method, mean in self.means.items():
                difference = f"{100 * (mean - self.means[self.reference]):+.1f}" if method != self.reference else ""
                body.append([f"mean of {count}", "", "", method, "", f"{mean:.1%}", difference])
        head = ["benchmark", "metric", "n", "method", "adapters", "right", f"against {self.reference}"]
        lines = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])
        comparisons = sum(row.against is not None for row in self.rows)
        note = """Intervals are 95 %. For one adapter they are Wilson's and cover other questions; for several they are
around the mean and cover other questions and other descriptions."""
        if comparisons:
            note += f""" Differences are in points, with the p-value of an exact
sign-flip permutation test over the questions (for one adapter each, McNemar's exact test). The p-values are adjusted by
Holm's method for all {comparisons} comparisons here; those below 0.05 are in **bold**."""
        return f"{lines}\n\n{note}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "means": self.means}


def compared(judged: Sequence[Judged], reference: str) -> Compared:
    """A row for each score, compared with the reference on its benchmark, with Holm's correction for all."""
    of_reference = {own.benchmark: np.array(own.scores) for own in judged if own.method == reference}
    rows = []
    for benchmark in of_reference:
        for own in (each for each in judged if each.benchmark == benchmark):
            scores, other = np.array(own.scores), of_reference[benchmark]
            against = None
            if own.method != reference:
                against = Paired(float(scores.mean() - other.mean()), sign_flip(scores, other))
            rows.append(
                Row(
                    benchmark=benchmark,
                    metric=own.metric,
                    method=own.method,
                    n=scores.shape[1],
                    accuracy=float(scores.mean()),
                    interval=interval(scores),
                    constant=own.constant,
                    against=against,
                    scores=["".join(map(str, of_one)) for of_one in own.scores],
                )
            )
    adjusted = iter(holm([row.against.p for row in rows if row.against]))
    rows = [
        row if row.against is None else replace(row, against=replace(row.against, p_holm=next(adjusted)))
        for row in rows
    ]
    return Compared(reference, rows)
