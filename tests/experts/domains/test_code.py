from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experts.domains import KINDS
from experts.domains.code import Code
from experts.outside.errors import UserError
from tests.experts.domains.conftest import Put

MBPP = {
    "task_id": 1,
    "text": "Write a function to double a number.",
    "code": "def double(x):\r\n    return 2 * x",
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4", "assert double(-3) == -6"],
    "challenge_test_list": [],
}
HUMANEVAL = {
    "task_id": "Mine/0",
    "prompt": 'from math import sqrt\n\n\ndef root(x: float) -> float:\n    """The root of x."""\n',
    "canonical_solution": "    return sqrt(x)\n",
    "test": "def check(candidate):\n    assert candidate(9) == 3\n",
    "entry_point": "root",
}
PRO = {
    "id": 0,
    "raw_problem": "# Write a function to double a number.\ndef double(x):",
    "raw_solution": "def double(x):\n    return 2 * x",
    "new_problem": "# Double each number of a list.\ndef double_all(xs):",
    "new_solution": "def double_all(xs):\n    return [double(x) for x in xs]",
    "test_code": "assert double_all([1, 2]) == [2, 4]",
}


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFADAPT_RUN_CODE", "1")


def load(put: Put, kind: str, row: dict[str, Any]) -> tuple[Code, dict[str, Any]]:
    put(f"{kind}/{'train' if kind == 'mbpp_pro' else 'test'}.jsonl", [row])
    if kind == "mbpp":
        put("mbpp/train.jsonl", [MBPP | {"text": "Something else."}])
    domain = KINDS[kind](kind=kind)
    return domain, domain.load("test")[0]


def score(domain: Code, row: dict[str, Any], *texts: str) -> list[float]:
    return domain.reward(texts, **{name: [value] * len(texts) for name, value in row.items()})


@pytest.mark.parametrize(("kind", "row"), [("mbpp", MBPP), ("humaneval", HUMANEVAL), ("mbpp_pro", PRO)])
def test_the_reference_passes_and_nothing_does_not(put: Put, kind: str, row: dict[str, Any]) -> None:
    domain, loaded = load(put, kind, row)
    assert score(domain, loaded, loaded["solution"], loaded["answer"], "", "I do not know.") == [1, 1, 0, 0]
    assert loaded["prompt"][0]["content"].endswith(domain.instruction)
    assert domain.name == kind


def test_the_question_holds_what_an_answer_needs(put: Put) -> None:
    _, row = load(put, "mbpp", MBPP)
    question = row["prompt"][0]["content"]
    assert question.startswith(MBPP["text"])
    assert all(test in question for test in MBPP["test_list"])
    _, row = load(put, "humaneval", HUMANEVAL)
    assert HUMANEVAL["prompt"].strip() in row["prompt"][0]["content"]
    _, row = load(put, "mbpp_pro", PRO)
    assert PRO["raw_problem"] in row["prompt"][0]["content"]
    assert PRO["new_problem"] in row["prompt"][0]["content"]


def test_rewards(put: Put) -> None:
    domain, row = load(put, "mbpp", MBPP)
    right = "Sure!\n```python\ndef double(x):\n    return x + x\n```\nTry it:\n```python\nprint(double(3))\n```"
    wrong = {
        "another function": "```python\ndef triple(x):\n    return 3 * x\n```",
        "wrong": "```python\ndef double(x):\n    return x * x\n```",
        "stops early": "```python\ndef double(x):\n    return x\nimport sys\nsys.exit(0)\n```",
        "stops harder": "```python\ndef double(x):\n    return x\nimport os\nos._exit(0)\n```",
        "raises": "```python\ndef double(x):\n    raise BaseException\n```",
        "not code": "```python\ndouble the number\n```",
        "null": "def double(x):\n    return 2 * x\0",
        "rambling": "and so on " * 5000,
        "prints": "```python\ndef double(x):\n    print(2 * x)\n```",
        "stops when called": "```python\ndef double(x):\n    import os; os._exit(0)\n```",
        "equal to anything": "class Any(int):\n    def __eq__(self, other): return True\ndef double(x): return Any(x)",
        "a mock": "from unittest.mock import ANY\ndef double(x): return ANY",
        "another AssertionError": "class AssertionError(Exception): ...\ndef double(x): return x",
        "goes on in the test": "def double(x): return x\nif 0: \\",
        "opens a try": "def double(x): return x\ntry:",
        "opens a string": "def double(x): return x\n'''",
        "breaks off": "```python\ndef double(x):\n    y = 2 * x\n    return (y",
        "a name that is not imported": "def double(x: Optional[int]):\n    return 2 * x",
        "an endless thought": "<think>\n```python\ndef double(x):\n    return 2 * x\n```",
        "no complaints": "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\ndef double(x): return x",
    }
    scores = score(domain, row, right, *wrong.values())
    assert scores == [1] + [0] * len(wrong)


def test_an_unclosed_block_and_a_main_part(put: Put) -> None:
    domain, row = load(put, "mbpp", MBPP)
    unclosed = "```python\ndef double(x):\n    return 2 * x"
    main = unclosed + "\n\nif __name__ == '__main__':\n    print(double(int(input())))\n```"
    assert score(domain, row, unclosed, main) == [1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "~~~python\ndef double(x):\n    return 2 * x\n~~~",
        "```Python3\r\ndef double(x):\r\n    return 2 * x\r\n```",
        "1. So:\n\n   ```python\n   def double(x):\n       return 2 * x\n   ```",
        "```python\ndouble = lambda x: 2 * x\n```",
        "```bash\npip install nothing\n```\nThen:\n```{python}\ndef double(x):\n    return 2 * x\n```",
        "<think>\n```python\ndef double(x): return x\n```\n</think>\n```py\ndef double(x):\n    return 2 * x\n```",
        "[BEGIN]\ndef double(x):\n    return 2 * x\n[DONE]",
        "<answer>\ndef double(x):\n    return 2 * x</answer><|im_end|>",
    ],
)
def test_blocks_as_they_are_written(put: Put, text: str) -> None:
    domain, row = load(put, "mbpp", MBPP)
    assert score(domain, row, text) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "Here is the code:\n\ndef double(x):\n    return 2 * x\n\nIt doubles the number.",
        "def double(x):\n    return 2 * x\n```\n",
        "```python\nfrom math import prod\n```\nThen:\n```python\ndef double(x):\n    return prod([2, x])\n```",
        "```python\ndef two():\n    return 2\n```\n```python\ndef double(x):\n    return two() * x\n```",
        "```python\ndef test():\n    assert double(2) == 4\n```\n```python\ndef double(x):\n    return 2 * x\n```",
        "Usage:\n```python\ndouble(2)\n```\nCode:\n```python\ndef double(x):\n    return 2 * x\n```",
        "```python\n# prints ```\ndef double(x):\n    return 2 * x\n```",
        "<pre><code>def double(x):\n    return 2 * x</code></pre>",
        "```python\ndef double(x): ...\n```\nIn full:\n```python\ndef double(x):\n    return 2 * x\n```",
        '```python\ndef double(x):\n    """As in:\n    ```\n    double(2)\n    ```\n    """\n    return 2 * x\n```',
        "```python\ndef double(x):\n    return 2 * x```",
        "```python\ndef double(x):\n    return 2 * x\n    ```\nSo:\n```\ndouble(2)\n```",
        "```python\ndef double(x):\n    return 2 * x\n\nprint(double(",
        "```python\ndef double(x):\n    return 2 * x if len('~~−５~~') == 6 else 0\n```",
    ],
)
def test_the_program_is_what_defines_what_the_tests_name(put: Put, text: str) -> None:
    domain, row = load(put, "mbpp", MBPP)
    assert score(domain, row, text) == [1]


def test_a_list_of_what_is_equal_to_anything_is_not_the_list(put: Put) -> None:
    domain, row = load(put, "mbpp_pro", PRO)
    mocks = "from unittest.mock import ANY\ndef double_all(xs): return [ANY for _ in xs]"
    assert score(domain, row, mocks) == [0]


def test_an_answer_may_go_on_where_the_question_ends(put: Put) -> None:
    domain, row = load(put, "humaneval", HUMANEVAL)
    assert score(domain, row, "    return sqrt(x)", "    return x", "```python\n    return sqrt(x)\n```") == [1, 0, 1]


def test_set_up_code_may_use_the_answer(put: Put) -> None:
    fields = {"code": "class Node: pass", "test_setup_code": "node = Node()", "test_list": ["assert node"]}
    domain, row = load(put, "mbpp", MBPP | fields)
    assert score(domain, row, row["solution"]) == [1]


def test_running_code_must_be_allowed(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    domain, row = load(put, "mbpp", MBPP)
    monkeypatch.delenv("SELFADAPT_RUN_CODE")
    with pytest.raises(UserError, match="SELFADAPT_RUN_CODE=1"):
        score(domain, row, row["solution"])


def test_evaluation_sets_cannot_be_trained_on(put: Put) -> None:
    for kind, row in (("humaneval", HUMANEVAL), ("mbpp_pro", PRO)):
        domain, _ = load(put, kind, row)
        for split in ("train", "validation"):
            with pytest.raises(UserError, match=f"{kind} has no {split} split"):
                domain.load(split)


def test_mistakes(put: Put) -> None:
    with pytest.raises(UserError, match="did you mean 'mbpp'"):
        Code(kind="mbp")  # type: ignore[arg-type]
    incomplete = {name: value for name, value in MBPP.items() if name != "test_list"}
    with pytest.raises(UserError, match=r"test\.jsonl:1: the field 'test_list' is missing"):
        load(put, "mbpp", incomplete)


def test_real_reference_solutions_pass(real_data: Path) -> None:
    domain = Code(kind="mbpp")
    rows = domain.load("test").select(range(20))
    columns = {name: rows[name] for name in rows.column_names}
    assert domain.reward(rows["solution"], **columns) == [1.0] * 20
