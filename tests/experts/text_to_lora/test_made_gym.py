"""Tasks of reasoning-gym: short, right by its own judges, and the same each time."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from experts.outside.errors import UserError
from experts.text_to_lora.made.gym import LONGEST_ANSWER, LONGEST_QUESTION, Source, gym_tasks, sources
from experts.text_to_lora.tasks import Task

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

SIZE = 3


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return gym_tasks(SIZE)


def pairs(task: Task) -> list[tuple[str, str]]:
    """Question and answer: the solved examples, then the instances."""
    return [*task.examples, *((instance.input, *instance.outputs) for instance in task.instances)]


def test_each_source_makes_a_task_of_the_size_asked_for(tasks: list[Task]) -> None:
    assert [task.name for task in tasks] == [source.name for source in sources()]
    assert {(task.split, len(task.instances), len(task.examples)) for task in tasks} == {("train", SIZE, 3)}
    assert {"algebra", "logic"} < {task.category for task in tasks}
    assert {len(task.descriptions) for task in tasks} == {8}
    assert all(task.definition == task.descriptions[0] for task in tasks)


def test_problems_are_short_and_no_question_is_repeated(tasks: list[Task]) -> None:
    for task in tasks:
        questions = [question for question, _ in pairs(task)]
        assert len(set(questions)) == len(questions), task.name
        assert max(map(len, questions)) <= LONGEST_QUESTION, task.name
        assert all(0 < len(answer) <= LONGEST_ANSWER for _, answer in pairs(task)), task.name


def test_the_generators_judge_the_answers_right(tasks: list[Task]) -> None:
    for source, task in zip(sources(), tasks, strict=True):
        answers = dict(pairs(task))
        problems = source.problems()
        index = 0
        while answers:
            problem = problems[index]
            index += 1
            answer = answers.pop(problem["question"], None)
            if answer is not None:
                assert problems.score_answer(answer, problem) == 1, (task.name, problem["question"], answer)


def test_the_first_instances_do_not_depend_on_the_size() -> None:
    source = sources()[0]
    assert source.task(20).instances[:SIZE] == source.task(SIZE).instances


def test_global_random_generators_and_standard_output_are_left_alone(
    tasks: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert gym_tasks(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert capsys.readouterr().out == ""


def test_too_few_different_problems() -> None:
    small = Source("gym_small", "chain_sum", ("Add.",), {"min_terms": 2, "max_terms": 2, "max_digits": 1})
    assert small.task(40).instances
    with pytest.raises(UserError, match="gym_small has only 200 different problems"):
        small.task(300)


def test_without_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'selfadapt\[reasoning-gym\]'"):
        gym_tasks(1)
