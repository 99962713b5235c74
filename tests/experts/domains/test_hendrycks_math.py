from __future__ import annotations

import pytest

from experts.domains.hendrycks_math import HendrycksMath, last_boxed
from experts.outside.errors import UserError
from tests.experts.domains.conftest import Put


def test_rows_and_rewards(put: Put) -> None:
    solution = r"Half of one is $\boxed{\frac{1}{2}}$."
    put("math/train.jsonl", [{"problem": "Half of 2?", "solution": r"\boxed{1}"}])
    put("math/test.jsonl", [{"problem": "Half of 1?", "solution": solution}])
    domain = HendrycksMath()
    row = domain.load("test")[0]
    assert (row["answer"], row["solution"]) == (r"\frac{1}{2}", solution)
    texts = [solution, r"It is \boxed{0.5}.", r"\boxed{2}", ""]
    assert domain.reward(texts, answer=[row["answer"]] * 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [(r"$\boxed{7}$", "7"), (r"$\boxed 7$.", "7"), (r"\fbox{7}", "7"), (r"\boxed{1} \boxed{\{2\}}", r"\{2\}")],
)
def test_last_boxed(solution: str, answer: str) -> None:
    assert last_boxed(solution) == answer


@pytest.mark.parametrize("solution", ["7", r"\boxed{7"])
def test_a_solution_without_an_answer(put: Put, solution: str) -> None:
    put("math/train.jsonl", [{"problem": "Half of 2?", "solution": r"\boxed{1}"}])
    put("math/test.jsonl", [{"problem": "Half of 14?", "solution": solution}])
    with pytest.raises(UserError, match=r"test\.jsonl:1: .*boxed"):
        HendrycksMath().load("test")
