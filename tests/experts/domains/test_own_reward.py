"""Reward functions of the user's own: how they are called, what they may return, and what is said of the others."""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from experts.domains import check_domain, own_reward, scores_of
from experts.domains.jsonl import Jsonl
from experts.outside.errors import UserError

HEAD = "import math, torch, numpy as np, pandas as pd\n"


def domain(tmp_path: Path, code: str, **options: Any) -> Jsonl:
    (tmp_path / "rewards.py").write_text(HEAD + code, encoding="utf-8")
    rows = [{"prompt": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    where = f"{tmp_path / 'rewards.py'}:mine"
    return Jsonl("sums", "Sums.", str(tmp_path / "rows.jsonl"), where, **options)


def returns(value: str) -> str:
    return f"def mine(prompts, completions, **columns):\n    return {value}\n"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("[3, -2.5, None]", [3.0, -2.5, math.nan]),
        ("[True, False, float('nan')]", [1.0, 0.0, math.nan]),
        ("np.array([1.5, 0, -1])", [1.5, 0.0, -1.0]),
        ("[np.float32(2), np.bool_(True), np.int64(-7)]", [2.0, 1.0, -7.0]),
        ("torch.tensor([2.0, 0.0, float('nan')])", [2.0, 0.0, math.nan]),
        ("[torch.tensor(2), torch.tensor(False), torch.tensor([0.5])[0]]", [2.0, 0.0, 0.5]),
        ("torch.tensor([2.0, 0.0, 1.0], requires_grad=True)", [2.0, 0.0, 1.0]),
        ("[pd.NA, 2, pd.NaT]", [math.nan, 2.0, math.nan]),
        ("pd.Series([1, pd.NA, 3], dtype='Int64')", [1.0, math.nan, 3.0]),
        ("(score for score in (1, 2, 3))", [1.0, 2.0, 3.0]),
    ],
)
def test_whatever_numbers_it_returns_are_used(value: str, wanted: list[float], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scores_of(domain(tmp_path, returns(value)), ["a", "b", "c"], prompts=["?"] * 3)
    assert scores == pytest.approx(wanted, nan_ok=True)
    assert {type(score) for score in scores} == {float}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1, 2]", "gave 2 scores for 3 completions"),
        ("1.0", "must return a list of scores"),
        ("None", "must return a list of scores, one per completion, not None"),
        ("[1, 'good', 0]", "a finite number, or None, not 'good'"),
        ("[1, math.inf, 0]", "a finite number, or None, not inf"),
        ("[1, [1], 0]", r"not \[1\]"),
        ("torch.ones(3, 1)", "must return a list of scores"),
        ("columns['nothing']", "failed with KeyError: 'nothing'"),
    ],
)
def test_what_is_no_number_is_one_line_that_names_the_function(value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        scores_of(domain(tmp_path, returns(value)), ["a", "b", "c"], prompts=["?"] * 3)
    assert "rewards.py:mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_it_is_called_as_trl_calls_it(tmp_path: Path) -> None:
    code = """
def mine(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **columns):
    log_metric("seen", 1.0)
    log_extra("seen", [1] * len(prompts))
    assert all(len(ids) for ids in completion_ids) or completions[0][0]["content"] == ""
    return [float(completion[-1]["content"] == right) for completion, right in zip(completions, answer)]
"""
    mine = domain(tmp_path, code)
    assert own_reward(mine) == mine.judged_by
    check_domain(mine)
    given = {"prompts": ["?"], "completion_ids": [[1]], "answer": ["2"]}
    assert scores_of(mine, ["2"], **given) == scores_of(mine, [[{"role": "assistant", "content": "2"}]], **given) == [1]


def test_it_may_be_asynchronous(tmp_path: Path) -> None:
    mine = domain(tmp_path, "async def mine(completions, **columns):\n    return [2.0] * len(completions)\n")
    assert scores_of(mine, ["a", "b"]) == [2.0, 2.0]

    async def in_a_notebook() -> list[float]:
        return scores_of(mine, ["a"])

    assert asyncio.run(in_a_notebook()) == [2.0]


def test_the_check_finds_what_fails_for_an_empty_completion(tmp_path: Path) -> None:
    code = "def mine(completions, **columns):\n    return [len(c[0]['content'].split()[-1]) for c in completions]\n"
    with pytest.raises(UserError, match=r"rewards\.py:mine failed with IndexError.*for an empty completion"):
        check_domain(domain(tmp_path, code))


def test_places_that_name_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = domain(tmp_path, "yours = 3\n" + returns("[1.0] * len(completions)"))
    rows = mine.path

    def refused(where: str, said: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            check_domain(Jsonl("sums", "Sums.", rows, where))
        assert "\n" not in str(error.value)

    file = tmp_path / "rewards.py"
    refused(f"{file}:mime", "unknown reward function in .*rewards.py 'mime'; did you mean 'mine'")
    refused(f"{file}:yours", "cannot be called: it is of the type int")
    for data in (None, str(tmp_path)):
        monkeypatch.delenv("SELFADAPT_DATA", raising=False) if data is None else monkeypatch.setenv(
            "SELFADAPT_DATA", data
        )
        refused("nowhere.py:mine", r"the reward function nowhere\.py:mine was not found: no file [^;]*nowhere\.py\Z")
    for name in ("rewards.py", "mine/rewards.py"):
        refused(name, f"the reward {name} is a file; name the function in it: {name}:name")
    refused(
        "no_such_package.rewards:mine", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
    )
    refused(f"{file}:", "must be file.py:name or package.module:name")
    (tmp_path / "broken.py").write_text("raise RuntimeError('two\\nlines')")
    refused(f"{tmp_path}/broken.py:mine", "cannot be imported: RuntimeError: two lines")
    monkeypatch.chdir(tmp_path)
    check_domain(Jsonl("sums", "Sums.", rows, "rewards.py:mine"))
    (tmp_path / "module_of_rewards.py").write_text(returns("[1.0] * len(completions)"))
    check_domain(Jsonl("sums", "Sums.", rows, "module_of_rewards:mine"))
