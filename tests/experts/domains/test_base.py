"""What a domain of one's own may return, and what is said where it returns something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from experts.domains.base import load_rows, scores_of
from experts.outside.errors import UserError


class Own:
    """A domain whose reward and rows are what a test gives."""

    name = "own"
    description = "Whatever."

    def __init__(self, reward: Callable[[], Any] = list, rows: Callable[[], Any] = list) -> None:
        self.give, self.rows = reward, rows

    def reward(self, completions: Any, **columns: Any) -> Any:
        return self.give()

    def load(self, split: str) -> Any:
        return self.rows()


@pytest.mark.parametrize(
    "given",
    [
        [1, 0, 0.5],
        (True, False, 0.5),
        np.array([1, 0, 0.5], dtype=np.float32),
        [np.float64(1), np.int64(0), np.float16(0.5)],
        [np.bool_(True), np.bool_(False), 0.5],
        torch.tensor([1, 0, 0.5]),
        torch.tensor([1, 0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1), torch.tensor(False), torch.tensor(0.5)],
        [Decimal(1), Fraction(0), Fraction(1, 2)],
        iter([1, 0, 0.5]),
        [1 + 1e-9, -1e-9, 0.5],  # rounding
    ],
)
def test_scores_are_plain_numbers_however_a_domain_counts(given: Any) -> None:
    scores = scores_of(Own(lambda: given), ["a", "b", "c"])
    assert scores == [1.0, 0.0, 0.5]
    assert {type(score) for score in scores} == {float}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "must return a list of scores, one per completion, not None"),
        (0.5, "must return a list"),
        (torch.tensor(0.5), "must return a list"),
        (np.ones((3, 1)), "must return a list"),
        ("100", "must return a list"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "must return a list"),
        ([1, 0], "gave 2 scores for 3 completions"),
        ([], "gave 0 scores for 3 completions"),
        ([1, 0, 1, 1], "gave 4 scores for 3 completions"),
        ([1, None, 0], r"a score in \[0, 1\], not None"),
        ([1, math.nan, 0], "not nan"),
        ([1, math.inf, 0], "not inf"),
        (np.array([1, np.nan, 0]), "nan"),
        ([1, -1, 0], "not -1"),
        ([1, 100, 0], "not 100"),
        ([1, "1", 0], "not '1'"),
        ([1, [1], 0], r"not \[1\]"),
        ([1, 1j, 0], "not 1j"),
        ([1, torch.ones(1), 0], "not tensor"),
    ],
)
def test_other_rewards_are_one_line_that_names_the_domain(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        scores_of(Own(lambda: given), ["a", "b", "c"])
    assert "the reward of own" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_that_fails_is_named_with_its_error() -> None:
    def broken() -> Any:
        raise KeyError("the column\nanswer")

    def ends() -> Any:
        raise SystemExit(3)

    with pytest.raises(UserError, match="the reward of own failed with SystemExit: 3"):
        scores_of(Own(ends), ["a"])
    with pytest.raises(UserError, match="the reward of own failed with KeyError"):
        scores_of(Own(broken), ["a"])
    with pytest.raises(UserError, match="ZeroDivisionError"):
        scores_of(Own(lambda: (1 / 0 for _ in range(3))), ["a"])


ROW = {"id": "1", "prompt": [{"role": "user", "content": "?"}], "answer": "!"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no rows"),
        ([{"id": "1", "prompt": ROW["prompt"]}], "lacks the column 'answer'"),
        ([{"prompt": ROW["prompt"], "answer": "!"}], "lacks the column 'id'"),
    ],
)
def test_rows_are_looked_at_where_they_are_loaded(rows: list[Any], said: str) -> None:
    assert len(load_rows(Own(rows=lambda: Dataset.from_list([ROW])), "train")) == 1
    with pytest.raises(UserError, match=f"the train split of own {said}"):
        load_rows(Own(rows=lambda: Dataset.from_list(rows)), "train")


def test_a_split_that_is_no_dataset_or_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"the test split of own must be a datasets\.Dataset"):
        load_rows(Own(rows=lambda: [ROW]), "test")
    with pytest.raises(UserError, match="the test split of own failed with ZeroDivisionError"):
        load_rows(Own(rows=lambda: 1 / 0), "test")
