"""What a run reports while it goes: to programs in its log, and to people on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text
from transformers import TrainerCallback

from experts.outside.files import atomic_file
from experts.outside.reading import read_objects
from experts.training import advice
from experts.training.processes import processes
from experts.training.statistics import Accuracy, Loss

Figure = Accuracy | Loss | float
"""What a validation measures: a share of right answers, or a loss."""


class Log:
    """JSON Lines that grow with a run.

    `training_log.jsonl` has one line per step and one per validation: ids and numbers, never the text of a data set.
    The model card, the curve, the choice of the best step and a resumed run rest on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def append_validation(self, step: int, figure: Figure) -> None:
        if isinstance(figure, Accuracy):
            reward = {} if figure.reward is None else {"mean_reward": figure.reward}
            self.append(step=step, right=figure.right, n=figure.n, **reward)
        else:
            self.append(step=step, validation_loss=float(figure))

    def entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [entry for _, _, entry in read_objects(self.path, growing=True)]

    def accuracies(self) -> dict[int, Accuracy]:
        """Step → accuracy on the validation split."""
        return {e["step"]: Accuracy(e["right"], e["n"], e.get("mean_reward")) for e in self.entries() if "right" in e}

    def validations(self) -> dict[int, Figure]:
        """Step → what its validation measured."""
        losses = {e["step"]: e["validation_loss"] for e in self.entries() if "validation_loss" in e}
        return {**self.accuracies(), **losses}

    def seconds(self) -> float:
        """The seconds that the steps took, without the validations between them."""
        return sum(entry.get("seconds", 0.0) for entry in self.entries())

    def forget_after(self, step: int) -> None:
        """Drops what an interrupted run did after its last checkpoint; it will be done again, identically."""
        if not self.path.exists():
            return
        kept = [json.dumps(entry) + "\n" for entry in self.entries() if entry["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


BLOCKS = "▁▂▃▄▅▆▇█"


class _Bars(Bars):
    """Bars, with text below them."""

    below: Sequence[RenderableType] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from self.below


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(8.2), duration(150)
    ('8 seconds', '2.5 minutes')
    """
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


class Progress:
    """A live bar in a terminal, one line per step elsewhere; silent on all processes but the first."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True, quiet=not processes().is_main_process)
        self._bars: _Bars | None = None
        self._latest = ""
        self._curve = ""
        self._samples: list[str] = []

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def begin(self, step: int, steps: int) -> None:
        self.steps = steps
        self._first, self._began = step, time.monotonic()
        if self.console.is_terminal:
            self._bars = self._make_bars()
            self._task = self._bars.add_task(self.title, total=steps, completed=step, figures="")
            self._bars.start()

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """Reports a step, given the entry that goes to the log."""
        step = entry["step"]
        if "reward" in entry:
            reward = "none" if entry["reward"] is None else f"{entry['reward']:+.2f}"
            learned = f"reward {reward}  right {entry['accuracy']:.0%}"
        else:
            learned = f"loss {entry['loss']:.3f}"
        speed = f"  {entry['tokens_per_second']:,.0f} tok/s" if "tokens_per_second" in entry else ""
        if self._bars:
            self._bars.update(self._task, completed=step, figures=f"{learned}{speed}  {self._latest}")
            if "accuracy" in entry:
                self._curve += BLOCKS[min(int(entry["accuracy"] * len(BLOCKS)), len(BLOCKS) - 1)]
                below = [f"right, step by step  {self._curve[-60:]}", *self._samples]
                self._bars.below = [Text(line, style="dim") for line in below]
            return
        left = (time.monotonic() - self._began) / (step - self._first) * (self.steps - step)
        figures = f"{learned}{speed}  {entry['seconds']:.1f} s  {left / 60:.0f} min left"
        for line in (f"{self.title}: step {step}/{self.steps}  {figures}", *self._samples):
            self.say(line)

    def sampled(self, prompt: str, samples: Sequence[tuple[str, float | None]]) -> None:
        """Takes some samples of a step, each with its reward, to show them with the step's figures."""
        said = [f"  {'none' if r is None else f'{r:+.2f}'}  {shorten(text, 80)}" for text, r in samples]
        self._samples = [f"  {shorten(prompt, 120)}", *said]

    def validated(self, step: int, figure: Figure) -> None:
        number = isinstance(figure, float)
        self._latest = (
            f"validation {figure.value:.1%}" if isinstance(figure, Accuracy) else f"validation {float(figure):.4f}"
        )
        said = f"{figure:.4f}" if number else figure
        self.say(f"{self.title}: validation at step {step}: {said}")

    def end(self) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for work on `total` items; call what it yields with the number of items just done."""
        if not self.console.is_terminal:
            self.say(f"{self.title}: {what}")
            yield lambda done: None
            return
        with self._make_bars() as bars:
            task = bars.add_task(f"{self.title}: {what}", total=total, figures="")
            yield lambda done: bars.advance(task, done)

    def _make_bars(self) -> _Bars:
        return _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
        )


# A trainer's name for a figure of a step → our log's.
FIGURES = {
    "reward": "reward",
    "accuracy": "accuracy",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "importance": "importance",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "unanimous",
    "kl": "kl",
}


class StepLog(TrainerCallback):
    """Passes each step's figures to the log and the display, with the time that the step took."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress
        self.seconds = self.began = 0.0
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens = state.num_input_tokens_seen
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "learning_rate" not in logs:
            return
        entry = {name: logs[key] for key, name in FIGURES.items() if key in logs}
        if "reward" in entry:
            del entry["loss"]  # it says nothing: its mean is the advantages' mean
            each = {key: value for key, value in logs.items() if key.startswith("rewards/") and key.endswith("/mean")}
            entry |= each if len(each) > 1 else {}
        tokens = state.num_input_tokens_seen - self.tokens
        speed = {"tokens_per_second": tokens / self.seconds} if tokens else {}
        entry = {"step": state.global_step, **entry, **speed, "seconds": self.seconds}
        self.tokens, self.seconds = state.num_input_tokens_seen, 0.0
        # TRL logs None as the reward of a step if a reward function has no opinion on it.
        self.log.append(**{key: round(v, 6) if isinstance(v, float) else v for key, v in entry.items()})
        self.progress.stepped(entry)
        if state.global_step == advice.STEPS and "accuracy" in entry:
            first = [step for step in self.log.entries() if "accuracy" in step]
            if said := advice.advice(first):
                self.progress.say(f"{self.progress.title}: {said}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.end()
