from __future__ import annotations

import doctest
import inspect
import logging
import random
import re
import subprocess
import sys
from importlib import import_module
from itertools import chain
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from experts.domains import Split, load_rows, reasoning_gym
from experts.domains.judges import bounded
from experts.domains.reasoning_gym import ReasoningGym
from experts.outside.errors import UserError

GENERATORS = {
    "advanced_geometry": "text",
    "arc_1d": "text",
    "basic_arithmetic": "last_number",
    "chain_sum": "last_number",
    "countdown": "text",
    "fraction_simplification": "text",
    "gcd": "last_number",
    "gsm_symbolic": "last_number",
    "knights_knaves": "text",
    "letter_counting": "last_number",
    "n_queens": "text",
    "polynomial_equations": "text",
    "products": "last_number",
    "rearc": "text",
    "simple_integration": "text",
    "spell_backward": "last_word",
    "spiral_matrix": "text",
}


def domain(dataset: str = "chain_sum", **options: Any) -> ReasoningGym:
    sizes = {"train_size": 40, "validation_size": 8, "test_size": 12}
    return ReasoningGym(name="mine", description="Problems.", dataset=dataset, **(sizes | options))


def small_sums(**options: Any) -> ReasoningGym:
    """Sums and differences of two digits: 200 different questions."""
    return domain(parameters={"min_terms": 2, "max_terms": 2, "max_digits": 1}, **options)


def questions(domain: ReasoningGym, split: Split) -> list[str]:
    return [prompt[0]["content"] for prompt in domain.load(split)["prompt"]]


def test_doctests() -> None:
    result = doctest.testmod(reasoning_gym)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("dataset", GENERATORS)
def test_the_generators_own_answer_is_right(dataset: str) -> None:
    mine = domain(dataset, answer_in=GENERATORS[dataset], test_size=6)
    rows = mine.load("test")
    columns = {name: rows[name] for name in rows.column_names if name != "prompt"}
    assert mine.reward(rows["answer"], **columns) == [1.0] * 6
    messages = [[{"role": "assistant", "content": answer}] for answer in rows["answer"]]
    assert mine.reward(messages, **columns, trainer_state=None) == [1.0] * 6


def test_rows() -> None:
    mine = domain(instruction="Answer with the number only.")
    rows = mine.load("train")
    assert len(rows) == len(set(rows["id"])) == 40
    assert rows[0]["id"].startswith("chain_sum-train-")
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    assert rows[0]["prompt"][0]["content"].endswith("=\n\nAnswer with the number only.")


def test_splits_are_disjoint_and_deterministic() -> None:
    split_questions = {split: questions(small_sums(), split) for split in get_args(Split)}
    assert {split: len(q) for split, q in split_questions.items()} == {"train": 40, "validation": 8, "test": 12}
    everything = list(chain(*split_questions.values()))
    assert len(set(everything)) == len(everything)
    assert split_questions == {split: questions(small_sums(), split) for split in get_args(Split)}
    assert questions(small_sums(seed=1), "test") != split_questions["test"]


def test_the_test_set_does_not_depend_on_the_other_sizes() -> None:
    assert questions(small_sums(train_size=5, validation_size=3), "test") == questions(small_sums(), "test")


def test_a_small_generator_gives_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = small_sums(train_size=1000).load("train")
    assert len(rows) == 200 - 12 - 8
    assert [record.getMessage() for record in caplog.records] == ["mine: only 180 rows for train instead of 1000"]


def test_nothing_left_for_a_split() -> None:
    with pytest.raises(UserError, match=r"only 200 different questions .* none is left for train"):
        small_sums(test_size=150, validation_size=60).load("train")


def test_ten_thousand_rows() -> None:
    assert len(ReasoningGym("sums", "Sums.", "chain_sum").load("train")) == 10_000


def test_where_the_answer_is() -> None:
    text = "First 3, and so 8."
    entry = bounded.pack({"question": "", "answer": "8", "metadata": {}})
    assert domain(answer_in="last_number").reward([text], answer=["8"], entry=[entry]) == [1.0]
    assert domain(answer_in="last_word").reward([text], answer=["8"], entry=[entry]) == [1.0]
    assert domain(answer_in="text").reward([text], answer=["8"], entry=[entry]) == [0.0]


def test_partial_credit() -> None:
    entry = bounded.pack({"question": "", "answer": "8", "metadata": {}})
    assert domain(partial_credit=True).reward(["= 8."], answer=["8"], entry=[entry]) == [1 / 4]


@pytest.mark.parametrize("dataset", ["chain_sum", "complex_arithmetic", "countdown", "number_sorting", "spiral_matrix"])
@pytest.mark.parametrize("partial_credit", [False, True])
def test_junk_is_never_right(dataset: str, partial_credit: bool) -> None:
    mine = domain(dataset, partial_credit=partial_credit, test_size=1)
    row = mine.load("test")[0]
    rng = random.Random(0)
    junk = ["", "\0", "\ud800", "٣٤", "9" * 10_000, "NaN", "Infinity", "1/0", "{}", "[" * 5000, "-" * 5000]
    junk += ["".join(chr(rng.randrange(1, 0x3000)) for _ in range(200)) for _ in range(20)]
    scores = mine.reward(junk, answer=[row["answer"]] * len(junk), entry=[row["entry"]] * len(junk))
    assert all(isinstance(score, float) and 0 <= score < 1 for score in scores)


def test_an_endless_judgement_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.3)
    mine = domain("countdown", test_size=1)
    row = mine.load("test")[0]
    assert mine.reward(["9**9**9**9"], answer=[row["answer"]], entry=[row["entry"]]) == [0.0]
    assert mine.reward([row["answer"]], answer=[row["answer"]], entry=[row["entry"]]) == [1.0]


@pytest.mark.parametrize(
    "text",
    ["exit()", "(lambda: 0)()", "__import__('os')", "().__class__", "[x for x in (1,)]", "sin('exit()')", "exit(2)+3!"],
)
def test_answers_that_call_code_are_not_judged(text: str) -> None:
    assert not reasoning_gym._is_data(text)


def test_all_evaluating_generators_are_known() -> None:
    from reasoning_gym.factory import DATASETS

    evaluating = re.compile(r"(?<!literal_)\b(eval|exec|parse_expr|sympify)\(\s*answer\b")
    modules = {name: import_module(kind.__module__) for name, (kind, _) in DATASETS.items()}
    found = {name for name, module in modules.items() if evaluating.search(inspect.getsource(module))}
    assert found == reasoning_gym.EVALUATING


def test_problems_survive_packing() -> None:
    problem = {"a": ((1, 2), [3, (4,)]), 5: None, "tuple": {"dict": [True, 0.5, "x"]}}
    assert bounded.unpack(bounded.pack(problem)) == problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "chain_sun"}, "unknown reasoning-gym dataset 'chain_sun'; did you mean 'chain_sum'"),
        ({"parameters": {"terms": 2}}, "no parameter 'terms'; it has allow_negation, max_digits, max_terms"),
        ({"parameters": {"seed": 2}}, "no parameter 'seed'"),
        ({"parameters": {"min_terms": 9}}, r"rejects its parameters \(max_terms must be >= min_terms\); it has all"),
        ({"parameters": {"min_terms": "two"}}, "rejects its parameters"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        domain(**options).load("test")
    assert "\n" not in str(caught.value)


def test_without_reasoning_gym_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as which Python finds none
    with pytest.raises(
        UserError, match=r"the domain \w+ needs reasoning-gym.*: pip install 'selfadapt\[reasoning-gym\]'"
    ):
        load_rows(domain(), "train")


@pytest.mark.long
def test_domains_are_known_without_reasoning_gym() -> None:
    script = (
        "import sys; sys.modules['reasoning_gym'] = None; from experts.domains import KINDS; KINDS['reasoning_gym']"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_mistakes_that_show_at_once() -> None:
    with pytest.raises(UserError, match="test_size must be at least 1"):
        domain(test_size=0)
    with pytest.raises(UserError, match="did you mean 'last_number'"):
        domain(answer_in="lastnumber")


def test_from_a_recipe() -> None:
    recipe = {"name": "sums", "description": "Sums.", "dataset": "chain_sum", "parameters": {"max_terms": 2}}
    mine = TypeAdapter(ReasoningGym).validate_python(recipe | {"answer_in": "last_number"})
    assert mine == ReasoningGym("sums", "Sums.", "chain_sum", {"max_terms": 2}, answer_in="last_number")
