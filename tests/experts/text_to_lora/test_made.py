"""Tasks that the library makes: right, describable, and held out by family."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

from experts.text_to_lora.made import FAMILIES
from experts.text_to_lora.made.family import Family
from experts.text_to_lora.made.gym import sources
from experts.text_to_lora.tasks import TaskData

SHOWN = """
from experts.text_to_lora.made import FAMILIES
from experts.text_to_lora.made.gym import gym_tasks
print([family.make(20) for family in FAMILIES], gym_tasks(3) if {gym} else [])
"""
GYM = find_spec("reasoning_gym") is not None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_only_descriptions_tell_the_tasks_of_a_family_apart(family: Family) -> None:
    """No two tasks have the same answers to the same inputs."""
    rng = random.Random(0)
    inputs = [family.draw(rng) for _ in range(300)]
    answers = {tuple(made.answer(value) for value in inputs) for made in family.tasks}
    assert len(answers) == len(family.tasks) >= 10


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_made_tasks_can_be_learned_from(family: Family) -> None:
    for task in family.make():
        assert len(task.descriptions) == 8, task.name
        assert task.definition == task.descriptions[0]
        inputs = [instance.input for instance in task.instances]
        assert len({*inputs, *(given for given, _ in task.examples)}) == len(inputs) + len(task.examples), task.name
        answers = [instance.outputs[0] for instance in task.instances]
        assert all(answer == answer.strip() and 0 < len(answer) <= 70 for answer in answers), task.name
        ((_, commonest),) = Counter(answers).most_common(1)
        assert commonest <= 0.9 * len(answers), task.name


def test_each_description_is_of_one_task() -> None:
    own = [(f"{family.name}_{made.name}", made.descriptions) for family in FAMILIES for made in family.tasks]
    described = [*own, *((source.name, source.descriptions) for source in sources())]
    assert len(dict(described)) == len(described)
    ((text, times),) = Counter(text.casefold() for _, texts in described for text in texts).most_common(1)
    assert times == 1, text


def test_the_same_tasks_are_made_everywhere() -> None:
    """In two processes that hash strings differently."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SHOWN.format(gym=GYM)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate(timeout=300)[0] for process in processes)
    assert first == second
    assert "Task(" in first


def test_families_are_held_out_whole() -> None:
    tasks = TaskData("made").load()
    kinds = [{task.category for task in split} for split in (tasks.train, tasks.validation, tasks.test)]
    assert all(kinds)
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == len(FAMILIES)
    assert len(tasks.test) >= 20
