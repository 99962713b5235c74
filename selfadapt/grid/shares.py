"""A grid divided among jobs that know nothing of each other: each runs its share, and none waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experts.outside.errors import check_whole
from selfadapt.grid.cells import Cell, TrainedCell


@dataclass(frozen=True)
class Share:
    """The `index`-th of `count` shares of a grid's cells, counted from 1; the same cells whoever asks."""

    index: int
    count: int

    def __post_init__(self) -> None:
        check_whole("the number of shares", self.count)
        check_whole("the number of a share", self.index, most=self.count)

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of this share, in their order; none if there are more shares than can be made.

        Groups of cells that need each other's results are given out largest first, each to the share with the least
        work.
        """
        groups = sorted(_groups(cells), key=_work, reverse=True)
        shares: list[list[Cell]] = [[] for _ in range(min(self.count, len(groups)))]
        work = [0] * len(shares)
        for group in groups:
            least = work.index(min(work))
            shares[least] += group
            work[least] += _work(group)
        own = {cell.name for cell in shares[self.index - 1]} if self.index <= len(shares) else set()
        return [cell for cell in cells if cell.name in own]


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Groups later seeds with those that choose their learning rate; every other cell is by itself."""
    chosen = {(cell.method, cell.trained_on) for cell in cells if isinstance(cell, TrainedCell) and cell.waits}
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        of = (cell.method, cell.trained_on) if isinstance(cell, TrainedCell) else None
        groups.setdefault(of if of in chosen else cell.name, []).append(cell)
    return [*groups.values()]


def _work(group: Sequence[Cell]) -> int:
    """How many cells of a group are run: of those that wait for a learning rate, one per seed."""
    seeds = {cell.seed for cell in group if isinstance(cell, TrainedCell) and cell.waits}
    return len(seeds) + sum(not (isinstance(cell, TrainedCell) and cell.waits) for cell in group)
