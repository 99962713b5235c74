"""What a person sees of a training run: a live bar in a terminal, a line a step elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from experts.training.log import Figure
from experts.training.processes import processes
from experts.training.statistics import Accuracy


class Progress:
    """The display of one run; silent on all processes but the first."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True, quiet=not processes().is_main_process)
        self._bars: Bars | None = None
        self._latest = ""

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def begin(self, step: int, steps: int) -> None:
        self.steps = steps
        self._first, self._began = step, time.monotonic()
        if self.console.is_terminal:
            self._bars = self._make_bars()
            self._task = self._bars.add_task(self.title, total=steps, completed=step, figures="")
            self._bars.start()

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """After a step, with the entry that goes to the log."""
        step = entry["step"]
        learned = (
            f"reward {entry['reward']:+.2f}  right {entry['accuracy']:.0%}"
            if "reward" in entry
            else f"loss {entry['loss']:.3f}"
        )
        speed = f"  {entry['tokens_per_second']:,.0f} tok/s" if "tokens_per_second" in entry else ""
        if self._bars:
            self._bars.update(self._task, completed=step, figures=f"{learned}{speed}  {self._latest}")
            return
        left = (time.monotonic() - self._began) / (step - self._first) * (self.steps - step)
        figures = f"{learned}{speed}  {entry['seconds']:.1f} s  {left / 60:.0f} min left"
        self.say(f"{self.title}: step {step}/{self.steps}  {figures}")

    def validated(self, step: int, figure: Figure) -> None:
        self._latest = f"validation {figure.value:.1%}" if isinstance(figure, Accuracy) else f"validation {figure:.4f}"
        said = figure if isinstance(figure, Accuracy) else f"{figure:.4f}"
        self.say(f"{self.title}: validation at step {step}: {said}")

    def end(self) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for work of `total` items; call what it gives with the number of items just done."""
        if not self.console.is_terminal:
            self.say(f"{self.title}: {what}")
            yield lambda done: None
            return
        with self._make_bars() as bars:
            task = bars.add_task(f"{self.title}: {what}", total=total, figures="")
            yield lambda done: bars.advance(task, done)

    def _make_bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
        )
