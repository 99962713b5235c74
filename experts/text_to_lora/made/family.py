"""Families of tasks that are made, not collected: one kind of input, and many things that may be asked of it.

The tasks of a family share their inputs, which do not say what is wanted: "7 3 12" may ask for a sum, the largest
number, or the same numbers in order. So only the description of a task tells what to answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from experts.text_to_lora.tasks import Instance, Task

T = TypeVar("T")

INSTANCES = 240
"""Instances of each task."""
EXAMPLES = 3
"""Solved examples that each task has beside them."""


@dataclass(frozen=True)
class Made(Generic[T]):
    """What is asked of a family's inputs."""

    name: str
    answer: Callable[[T], str]
    descriptions: tuple[str, ...]
    """The first one also serves as the definition."""


def asked(name: str, answer: Callable[[Any], Any], *descriptions: str) -> Made[Any]:
    """A task whose answer is shown as text: numbers as they are printed, lists with spaces, truth as yes or no."""
    return Made(name, lambda value: shown(answer(value)), descriptions)


def shown(answer: Any) -> str:
    """An answer as it is written.

    >>> shown([3, 7]), shown([]), shown(True), shown(12)
    ('3 7', 'none', 'yes', '12')
    """
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, (list, tuple)):
        return " ".join(map(str, answer)) or "none"
    return str(answer)


@dataclass(frozen=True)
class Family(Generic[T]):
    """Tasks with inputs in common."""

    name: str
    draw: Callable[[random.Random], T]
    """A new input."""
    show: Callable[[T], str]
    """The input as the base reads it."""
    tasks: tuple[Made[T], ...]
    split: Literal["train", "validation", "test"] = "train"
    """Families are held out whole."""

    def make(self, size: int = INSTANCES) -> list[Task]:
        """The family's tasks, named `family_task`, with `size` instances each; always the same ones.

        Within a task no input occurs twice, and none is among the task's solved examples.
        """
        return [self._task(made, size) for made in self.tasks]

    def _task(self, made: Made[T], size: int) -> Task:
        name = f"{self.name}_{made.name}"
        rng = random.Random(name)
        answers: dict[str, str] = {}  # by the input as it is read
        while len(answers) < EXAMPLES + size:
            value = self.draw(rng)
            answers.setdefault(self.show(value), made.answer(value))
        return task_of(answers, name, self.split, made.descriptions, self.name)


def task_of(answers: Mapping[str, str], name: str, split: str, descriptions: tuple[str, ...], category: str) -> Task:
    """The task whose inputs have these answers: the first `EXAMPLES` are its solved examples, the others instances."""
    pairs = list(answers.items())
    instances = tuple(
        Instance(f"{name}-{number}", text, (answer,)) for number, (text, answer) in enumerate(pairs[EXAMPLES:])
    )
    return Task(name, split, descriptions[0], instances, tuple(pairs[:EXAMPLES]), descriptions, category)
