"""Answers as they are written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from experts import Mixture
from experts.outside.errors import UserError
from selfadapt.page.answers import LONGEST, Answer, answers, read
from selfadapt.page.side_by_side import pair
from selfadapt.serving.served import Served

PROMPTS = ["Which animal barks?", "What is two and two?", "Hello"]


def test_answers_grow_to_those_of_the_engine(served: Callable[[str], Served]) -> None:
    serving = served("none")
    mixture = Mixture.together([Mixture.of({"a": 1.0}), Mixture.of({}), Mixture.of({"a": 0.5, "b": 0.5})])
    seen = [[row.text for row in rows] for rows in answers(serving, PROMPTS, mixture, 12)]
    assert seen[-1] == serving.engine.generate(PROMPTS, max_new_tokens=12, mixture=mixture)
    for earlier, later in itertools.pairwise(seen):
        assert all(longer.startswith(shorter) for shorter, longer in zip(earlier, later, strict=True))


def test_whoever_stops_listening_lets_the_batch_go(served: Callable[[str], Served]) -> None:
    serving = served("none")
    serving.engine.generation_config.eos_token_id = None
    writing = answers(serving, PROMPTS, Mixture.of({}, prompts=3), 400)
    next(writing)
    writing.close()
    until = time.monotonic() + 20
    while serving.batch.running and time.monotonic() < until:
        time.sleep(0.01)
    assert serving.batch.running == 0


@pytest.mark.parametrize("prompt", [None, "", " \n", "x" * (LONGEST + 1)])
def test_what_is_no_prompt_is_refused(prompt: str | None) -> None:
    with pytest.raises(UserError, match="prompt"):
        read(prompt)


def test_what_does_not_fit_is_refused(served: Callable[[str], Served]) -> None:
    with pytest.raises(UserError, match="exceed the context"):
        next(answers(served("none"), ["x" * 600], Mixture.of({}), 8))


def test_an_answer_of_nothing_says_so() -> None:
    empty, begun = Answer(" ", 1, ended=True), Answer()
    assert "ended at once" in pair(["a"], {"a": 1.0}, empty, begun)
    assert "ended at once" not in pair(["a"], {"a": 1.0}, begun, Answer("said", 1, ended=True))
