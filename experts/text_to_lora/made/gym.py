"""Tasks made by the generators of reasoning-gym, an optional package; `gym.yaml` lists and describes them.

Unlike in the families, a question says what is wanted.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import yaml

from experts.outside.errors import UserError, not_installed
from experts.text_to_lora.made.family import EXAMPLES, INSTANCES, task_of
from experts.text_to_lora.tasks import Task

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

# In characters; problems with a longer question or answer are passed over.
LONGEST_QUESTION = 600
LONGEST_ANSWER = 100
# How many problems a generator may make until a task is full.
ATTEMPTS = 10_000


@dataclass(frozen=True)
class Source:
    """A generator with its settings, and what people call the task that it makes."""

    name: str
    generator: str
    descriptions: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> ProceduralDataset:
        """The generator's problems, seeded by `name`.

        Raises:
            UserError: if reasoning-gym is not installed.
        """
        try:
            from reasoning_gym import create_dataset
        except ModuleNotFoundError as error:
            raise not_installed("gym_tasks", "reasoning-gym", "reasoning-gym") from error
        return create_dataset(self.generator, **self.parameters, seed=Random(self.name).getrandbits(31), size=ATTEMPTS)

    def task(self, size: int) -> Task:
        """The first problems, without repeated questions: the solved examples, then `size` instances.

        Raises:
            UserError: if there are too few, or reasoning-gym is not installed.
        """
        problems = self.problems()
        answers: dict[str, str] = {}  # by question
        for index in range(ATTEMPTS):
            problem = problems[index]
            question, answer = problem["question"], problem["answer"]
            if len(question) <= LONGEST_QUESTION and 0 < len(answer) <= LONGEST_ANSWER:
                answers.setdefault(question, answer)
            if len(answers) == EXAMPLES + size:
                break
        else:
            raise UserError(f"{self.name} has only {len(answers)} different problems; ask for fewer than {size}")
        return task_of(answers, self.name, "train", self.descriptions, problems.category)


def sources() -> list[Source]:
    """What `gym.yaml` lists; the names begin with `gym_`."""
    table = yaml.safe_load(Path(__file__).with_name("gym.yaml").read_text(encoding="utf-8"))
    return [
        Source(f"gym_{name}", entry["generator"], tuple(entry["descriptions"]), entry.get("parameters", {}))
        for name, entry in table.items()
    ]


def gym_tasks(size: int = INSTANCES) -> list[Task]:
    """A task of each source, with `size` instances; always the same ones.

    Raises:
        UserError: if reasoning-gym is not installed, or a generator runs out of different problems.
    """
    # Some generators print.
    with redirect_stdout(io.StringIO()):
        return [source.task(size) for source in sources()]
