"""Runs the cells of a grid on Ray's workers: one cell per worker, with a card of its own if the cluster has cards."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from experts.outside.errors import UserError, not_installed
from experts.training.run import Interrupted
from selfadapt.grid.cells import Cell
from selfadapt.grid.results import Line, add_results
from selfadapt.grid.run import Work, claim_and_run, failure, say

try:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RaySystemError, RayTaskError, WorkerCrashedError
except ModuleNotFoundError as error:
    raise not_installed("--on ray", "Ray", "ray") from error

TRIES = 3
"""How often a cell is started if its worker dies; each time it goes on from its last checkpoint."""


class RayWorkers:
    """The workers of the cluster that `ray.init` finds (`RAY_ADDRESS`), or of one that it starts on this machine.

    The cluster's machines see the output under the same path, and have the same packages installed. This process alone
    writes the results file.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._running: dict[Any, Cell] = {}
        self._deaths: Counter[str] = Counter()

    def __enter__(self) -> RayWorkers:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        cards = 1 if ray.cluster_resources().get("GPU") else 0
        self._remote = ray.remote(_run_in).options(num_cpus=1, num_gpus=cards, max_retries=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()  # ends what is still running

    def run(self, cells: Sequence[Cell]) -> bool:
        """Hands over the cells that are not running yet, and waits for one to end; False if none has been run."""
        running = {cell.name for cell in self._running.values()}
        for cell in cells:
            if cell.name not in running:
                self._running[self._remote.remote(Path.cwd(), cell, self._work)] = cell
        if not self._running:
            return False
        (ended,), _ = ray.wait([*self._running])
        return self._take(ended)

    def _take(self, reference: Any) -> bool:
        cell = self._running.pop(reference)
        try:
            lines = ray.get(reference)
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError, Interrupted) as error:
            self._deaths[cell.name] += 1
            if self._deaths[cell.name] < TRIES:
                say(f"{cell.name}: its worker died; trying it again")
                return True
            lines = [failure(cell, error)]
        except (RaySystemError, RayTaskError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise cause from error
            said = str(error).strip().splitlines()[-1]
            raise UserError(
                f"Ray's workers cannot run {cell.name}: {said}; they need the same packages as this machine"
            ) from error
        if lines is None:
            return False
        add_results(self._work.results, lines)
        self._work.to_retry.discard(cell.name)
        for line in lines:
            if line.error:
                say(f"{cell.name} failed: {line.error}")
        say(f"{cell.name} has ended: {self._work.done(self._work.lines())}")
        return True


def _run_in(folder: Path, cell: Cell, work: Work) -> list[Line] | None:
    """`claim_and_run` in the caller's working directory, which relative paths start from."""
    os.chdir(folder)
    return claim_and_run(cell, work)
