"""Tasks that the library makes: right, describable, and held out by family."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest

from experts.text_to_lora.made import FAMILIES, made_tasks
from experts.text_to_lora.made.family import Family
from experts.text_to_lora.tasks import Task, TaskData

TASKS = {task.name: task for task in made_tasks()}
DIGEST = """
import hashlib
from experts.text_to_lora.made import made_tasks
print(hashlib.sha256(repr(made_tasks()).encode()).hexdigest())
"""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_only_descriptions_tell_the_tasks_of_a_family_apart(family: Family) -> None:
    """No two tasks have the same answers to the same inputs."""
    rng = random.Random(0)
    inputs = [family.draw(rng) for _ in range(300)]
    answers = {tuple(made.answer(value) for value in inputs) for made in family.tasks}
    assert len(answers) == len(family.tasks) >= 10


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_made_task_can_be_learned_from(task: Task) -> None:
    assert len(task.descriptions) == len(set(task.descriptions)) >= 8
    assert all(text == text.strip() and len(text.split()) >= 2 for text in task.descriptions)
    inputs = [instance.input for instance in task.instances]
    assert len(set(inputs)) == len(inputs)
    assert not {given for given, _ in task.examples} & set(inputs)
    answers = [instance.outputs[0] for instance in task.instances]
    assert all(answer == answer.strip() and 0 < len(answer) <= 100 for answer in answers)
    ((_, commonest),) = Counter(answers).most_common(1)
    assert commonest <= 0.9 * len(answers)


def test_no_description_is_used_twice() -> None:
    ((text, times),) = Counter(text for task in TASKS.values() for text in task.descriptions).most_common(1)
    assert times == 1, text


def test_the_same_tasks_are_made_everywhere() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


def test_families_are_held_out_whole() -> None:
    tasks = TaskData("made").load()
    kinds = [{task.category for task in split} for split in (tasks.train, tasks.validation, tasks.test)]
    assert all(kinds)
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == len(FAMILIES)
    assert len(tasks.test) >= 20
