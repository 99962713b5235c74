from __future__ import annotations

import pytest

from experts.domains.gsm8k import Gsm8k
from tests.experts.domains.conftest import Put

ROWS = [
    {"question": f"Ann has {n} eggs and buys as many. How many now?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}"}
    for n in range(600, 640)
]
ROWS = [row | {"answer": f"{row['answer']} eggs.\n#### {2 * n:,}"} for n, row in enumerate(ROWS, 600)]


def test_rows(put: Put) -> None:
    put("gsm8k/train.jsonl", ROWS)
    row = Gsm8k().load("train")[0]
    number = int(row["id"].removeprefix("train:")) + 600
    assert row["answer"] == str(2 * number)
    assert row["solution"] == f"{number}+{number}={2 * number} eggs.\n#### {2 * number:,}"
    assert row["prompt"][0]["content"].startswith(f"Ann has {number} eggs")
    assert row["prompt"][0]["content"].endswith(Gsm8k().instruction)
    assert Gsm8k(instruction="").load("train")[0]["prompt"][0]["content"].endswith("How many now?")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("#### 1200", 1),
        ("600 + 600 = 1,200\n#### 1,200", 1),
        ("#### $1,200.00", 1),
        ("#### 1200 eggs.\nAnd 7 hens.", 1),
        ("####\n1200", 1),
        ("so there are 1,200 eggs.", 1),
        ("#### -1200", 0),
        ("#### 1,200.5", 0),
        ("#### 12\n#### 1200", 1),
        ("1200, that is #### 12", 0),
        ("1200 ####", 1),
        ("#### twelve hundred", 1),
        ("#### twelve thousand", 0),
        ("", 0),
        ("1200 " + "and so on " * 2000 + "13", 0),
    ],
)
def test_the_final_number_counts(text: str, score: float) -> None:
    assert Gsm8k().reward([text], answer=["1200"]) == [score]


def test_a_negative_answer() -> None:
    assert Gsm8k().reward(["#### −3 degrees", "#### 3"], answer=["-3", "-3"]) == [1, 0]
