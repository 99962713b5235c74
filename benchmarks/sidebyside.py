"""Times alternatives in turns, A B C A B C …, so that a machine whose speed drifts treats them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table


def in_turns(alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """The seconds of each alternative in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(warmup + rounds):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(seconds: Mapping[str, list[float]], against: str) -> dict[str, tuple[str, str, str]]:
    """For each alternative: median seconds, the median of its ratios to `against` by round, and their range."""
    found = {}
    for name, times in seconds.items():
        ratios = _ratios(times, seconds[against])
        texts = f"{statistics.median(times):.3f}", f"{statistics.median(ratios):.2f}"
        found[name] = (*texts, f"{min(ratios):.2f} to {max(ratios):.2f}")
    return found


def side_by_side(
    what: str, alternatives: Mapping[str, Callable[[], object]], *, against: str, rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Prints median seconds and, round by round, the ratio to the alternative `against`; returns the median ratios."""
    seconds = in_turns(alternatives, rounds, warmup)
    table = Table("", "seconds (median)", f"× {against} (median)", "min to max", title=f"{what}, {rounds} rounds")
    for name, texts in rows(seconds, against).items():
        table.add_row(name, *texts)
    Console(width=110).print(table)
    return {name: statistics.median(_ratios(times, seconds[against])) for name, times in seconds.items()}


def _ratios(times: list[float], others: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(times, others, strict=True)]
