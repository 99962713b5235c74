"""A run's first steps say what stands in the way of learning, and nothing where nothing does."""

from __future__ import annotations

import pytest

from experts.training.advice import advice


def step(**figures: float) -> dict[str, float]:
    return {"accuracy": 0.3, "unanimous": 0.4, "truncated": 0.1, **figures}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, None),
        ({"accuracy": 0.0, "unanimous": 1.0, "truncated": 1.0}, "no sample has been right so far"),
        ({"accuracy": 0.0}, None),
        ({"unanimous": 0.95}, "of 95% of the prompts all earned the same"),
        ({"truncated": 0.6}, "60% of the samples were cut off at max_new_tokens"),
    ],
)
def test_the_first_that_stands_in_the_way_is_said(figures: dict[str, float], said: str | None) -> None:
    found = advice([step(**figures)] * 3)
    assert found is None if said is None else said in (found or "")


def test_it_is_the_mean_over_the_steps_that_counts() -> None:
    assert advice([step(truncated=0.9), step(truncated=0.2), step(truncated=0.2)]) is None
    never = step(accuracy=0.0, unanimous=1.0)
    assert "all earned the same" in (advice([never, never, step(accuracy=0.01, unanimous=0.9)]) or "")


def test_a_log_of_earlier_versions_lacks_what_they_did_not_count() -> None:
    assert advice([{"accuracy": 0.3}]) is None
