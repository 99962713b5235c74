"""Times alternatives in turns, A B C A B C …, so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table


def side_by_side(
    what: str, alternatives: Mapping[str, Callable[[], object]], *, against: str, rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Prints median seconds and, round by round, the ratio to the alternative `against`; returns the median ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(warmup + rounds):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    table = Table("", "seconds (median)", f"× {against} (median)", "min to max", title=f"{what}, {rounds} rounds")
    medians = {}
    for name, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds[against], strict=True)]
        medians[name] = statistics.median(ratios)
        table.add_row(
            name,
            f"{statistics.median(times):.3f}",
            f"{medians[name]:.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console(width=110).print(table)
    return medians
