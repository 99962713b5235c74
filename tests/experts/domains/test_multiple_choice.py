from __future__ import annotations

from typing import Any, get_args

import pytest

from experts.domains import KINDS
from experts.domains.base import Split
from experts.domains.multiple_choice import MultipleChoice
from experts.outside.errors import UserError
from tests.experts.domains.conftest import Put


def science(number: int, **fields: Any) -> dict[str, Any]:
    choices = {"text": ["a stone", "a hen", "a lamp"], "label": ["1", "2", "3"]}
    return {
        "id": f"x{number}",
        "question": f"Which is alive ({number})?",
        "choices": choices,
        "answerKey": "2",
    } | fields


def put_all(put: Put, kind: str, row: dict[str, Any]) -> MultipleChoice:
    for split in ("train", "validation", "test"):
        put(f"{kind}/{split}.jsonl", [row])
    return KINDS[kind](kind=kind)


def only(domain: MultipleChoice) -> dict[str, Any]:
    rows = domain.load("test")
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("kind", ["arc_easy", "arc_challenge"])
def test_science(put: Put, kind: str) -> None:
    row = only(put_all(put, kind, science(0)))
    question = (
        "Which is alive (0)?\n\nA. a stone\nB. a hen\nC. a lamp\n\nAnswer with the letter of the right choice only."
    )
    assert row["prompt"] == [{"role": "user", "content": question}]
    assert (row["answer"], row["choices"], row["id"]) == ("B", ["a stone", "a hen", "a lamp"], "test:0")


def test_choices_that_are_letters_get_none(put: Put) -> None:
    choices = {"text": ["B", "A", "C"], "label": ["A", "B", "C"]}
    domain = put_all(put, "arc_easy", science(0, choices=choices, answerKey="A"))
    row = only(domain)
    assert "?\n\nB\nA\nC\n\n" in row["prompt"][0]["content"]
    assert row["answer"] == "B"
    assert domain.reward(["B", "A"], answer=["B"] * 2, choices=[row["choices"]] * 2) == [1, 0]


def test_the_other_data_sets(put: Put) -> None:
    boolq = only(put_all(put, "boolq", {"question": "do hens fly", "passage": "Hens -- They hop.", "answer": False}))
    question = "Hens -- They hop.\n\nDo hens fly?\n\nAnswer with yes or no only."
    assert (boolq["prompt"][0]["content"], boolq["answer"], boolq["choices"]) == (question, "No", ["Yes", "No"])
    stem = science(0) | {"question_stem": "Alive is"}
    del stem["question"]
    assert only(put_all(put, "openbookqa", stem))["prompt"][0]["content"].startswith("Alive is\n\nA. a stone\n")
    piqa = only(put_all(put, "piqa", {"goal": "Boil an egg", "sol1": "In water", "sol2": "In sand", "label": 0}))
    assert (piqa["answer"], piqa["choices"]) == ("A", ["In water", "In sand"])
    gap = {"sentence": "The hen saw the fox, and _ ran.", "option1": "the fox", "option2": "the hen", "answer": "2"}
    asked = only(put_all(put, "winogrande", gap))
    assert (asked["answer"], asked["choices"]) == ("B", ["the fox", "the hen"])
    assert asked["prompt"][0]["content"].startswith("The hen saw the fox, and _ ran.\n\nWhat belongs")


def test_hellaswag_without_the_marks_of_wikihow(put: Put) -> None:
    row = {
        "activity_label": "Cooking",
        "ctx": "[header] How to boil an egg [title] Take a pot. [step] Fill it.",
        "endings": ["Eat the pot.", "Put the egg  in. [substeps] Wait.", "Sing.", "Leave."],
        "label": "1",
    }
    asked = only(put_all(put, "hellaswag", row))
    assert asked["prompt"][0]["content"] == (
        "Cooking: How to boil an egg. Take a pot. Fill it.\n\nHow does this go on?\n\n"
        "A. Eat the pot.\nB. Put the egg in. Wait.\nC. Sing.\nD. Leave.\n\n"
        "Answer with the letter of the right choice only."
    )
    assert (asked["answer"], asked["choices"][1]) == ("B", "Put the egg in. Wait.")
    unlabelled = put_all(put, "hellaswag", row | {"label": ""})  # as the hub's test split is
    with pytest.raises(UserError, match="hellaswag/validation"):
        unlabelled.load("test")


def test_a_split_that_is_named_for_its_size(put: Put) -> None:
    gaps = [
        {"sentence": f"Hen {i} saw the fox, and _ ran.", "option1": "the fox", "option2": "the hen", "answer": "2"}
        for i in range(60)
    ]
    put("winogrande/train_xl.jsonl", gaps)
    splits = [MultipleChoice(kind="winogrande").load(split) for split in get_args(Split)]
    assert sum(map(len, splits)) == 60


def test_answers_by_letter_or_words() -> None:
    domain = MultipleChoice(kind="arc_easy")
    texts = ["B", "B. a hen", "The answer is (B).", "a hen", "A", "a hen or a lamp", "", "bah " * 500]
    columns = {"answer": ["B"] * 8, "choices": [["a stone", "a hen", "a lamp"]] * 8}
    assert domain.reward(texts, **columns) == [1, 1, 1, 1, 0, 0, 0, 0]
    yes_or_no = MultipleChoice(kind="boolq")
    columns = {"answer": ["No"] * 4, "choices": [["Yes", "No"]] * 4}
    assert yes_or_no.reward(["no.", "No, they do not.", "Yes", "Yes and no"], **columns) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answerKey": "7"}, "'answerKey' must be one of 1, 2, 3"),
        ({"choices": {"text": ["a hen"]}}, "the field 'label' is missing"),
        ({"choices": {"text": ["a hen"], "label": ["1", "2"]}}, "no choice 1 among 1"),
        ({"choices": None}, "arc_easy/test.jsonl:1"),
    ],
)
def test_rows_that_cannot_be_read(put: Put, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        put_all(put, "arc_easy", science(0, **fields)).load("test")


def test_an_unknown_data_set() -> None:
    with pytest.raises(UserError, match="did you mean 'arc_easy'"):
        MultipleChoice(kind="arc_eazy")  # type: ignore[arg-type]
