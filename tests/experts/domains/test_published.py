"""Where published rows come from, and that no question stands in two splits; with the smallest domain, GSM8K."""

from __future__ import annotations

from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest

from experts.domains import KINDS, Domain, Split
from experts.domains.code import Code
from experts.domains.gsm8k import Gsm8k
from experts.domains.hendrycks_math import HendrycksMath
from experts.domains.multiple_choice import ChoiceKind, MultipleChoice
from experts.outside.errors import UserError
from tests.experts.domains.conftest import Put


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"question": f"What is {number} + 1?", "answer": f"One more.\n#### {number + 1}"} | fields


def ids(domain: Domain, split: Split) -> list[str]:
    return list(domain.load(split)["id"])


def questions(domain: Domain, split: Split) -> set[str]:
    """What is asked, whatever its case, spacing and punctuation."""
    return {"".join(filter(str.isalnum, prompt[0]["content"].casefold())) for prompt in domain.load(split)["prompt"]}


def test_tenths_of_train_stand_in_for_missing_splits(put: Put) -> None:
    put("gsm8k/train.jsonl.gz", [row(number) for number in range(300)])
    parts = {split: ids(Gsm8k(), split) for split in get_args(Split)}
    assert sorted(chain(*parts.values())) == sorted(f"train:{number}" for number in range(300))
    assert all(15 < len(parts[split]) < 50 for split in ("validation", "test"))
    assert parts == {split: ids(Gsm8k(), split) for split in get_args(Split)}


def test_official_splits_are_taken_whole(put: Put) -> None:
    put("gsm8k/train.jsonl", [row(number) for number in range(100)])
    before = {split: ids(Gsm8k(), split) for split in get_args(Split)}
    put("gsm8k/test.jsonl", [row(number) for number in range(500, 520)])
    assert ids(Gsm8k(), "test") == [f"test:{number}" for number in range(20)]
    assert ids(Gsm8k(), "validation") == before["validation"]
    assert ids(Gsm8k(), "train") == before["train"]  # what is the test of a copy without one is never trained on


def test_a_question_stays_in_one_split(put: Put) -> None:
    rows = [row(number) for number in range(100)]
    shouted = [row(number, question=f"  WHAT is {number}  +  1? ") for number in range(100)]
    punctuated = [row(number, question=f"“What, is {number}+1”") for number in range(100)]
    put("gsm8k/train.jsonl", rows + shouted + punctuated)
    held_out = questions(Gsm8k(), "test")
    put("gsm8k/test.jsonl", [rows[3]])
    parts = {split: questions(Gsm8k(), split) for split in get_args(Split)}
    assert not parts["test"] & held_out
    assert sum(map(len, parts.values())) == 100 - len(held_out)
    assert all(not parts[a] & parts[b] for a, b in combinations(parts, 2))
    assert "train:3" not in ids(Gsm8k(), "train") + ids(Gsm8k(), "validation")


def test_rows_that_overlap_with_evaluation_splits_are_dropped(put: Put) -> None:
    put("gsm8k/train.jsonl", [row(number) for number in range(100)])
    overlaps = [
        {"dataset": "gsm8k", "split": "train", "row": 5},
        {"dataset": "gsm8k", "split": "validation", "row": 6},
        {"dataset": "mbpp", "split": "train", "row": 7},
    ]
    put("_overlaps/train_rows_to_drop.jsonl", overlaps)
    everything = {id_ for split in get_args(Split) for id_ in ids(Gsm8k(), split)}
    assert everything == {f"train:{number}" for number in range(100) if number != 5}


def test_validation_rows_that_overlap_are_dropped_and_test_rows_are_not(put: Put) -> None:
    def science(number: int) -> dict[str, Any]:
        choices = {"label": ["A", "B"], "text": ["yes", "no"]}
        return {"id": str(number), "question": f"Is {number} even?", "choices": choices, "answerKey": "AB"[number % 2]}

    for start, split in enumerate(("train", "validation", "test")):
        put(f"arc_easy/{split}.jsonl", [science(100 * start + number) for number in range(40)])
    overlaps = [{"dataset": "arc_easy", "split": split, "row": 3} for split in ("validation", "test")]
    put("_overlaps/train_rows_to_drop.jsonl", overlaps)
    domain = MultipleChoice(kind="arc_easy")
    assert ids(domain, "validation") == [f"validation:{number}" for number in range(40) if number != 3]
    assert ids(domain, "test") == [f"test:{number}" for number in range(40)]


def test_a_path_goes_before_the_data_folder(put: Put, tmp_path: Path) -> None:
    put("gsm8k/train.jsonl", [row(0)])
    file = put("elsewhere/mine.jsonl", [row(number) for number in range(50)])
    put("elsewhere/train.jsonl", [row(number) for number in range(60)])
    put("elsewhere/test.jsonl", [row(70)])
    for path in (str(file), "elsewhere/mine.jsonl"):
        assert sum(len(ids(Gsm8k(path=path), split)) for split in get_args(Split)) == 50
    assert ids(Gsm8k(path=str(file.parent)), "test") == ["test:0"]
    with pytest.raises(UserError, match="nowhere"):
        Gsm8k(path="nowhere").load("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"none of train\.jsonl\[\.gz\], test"):
        Gsm8k(path=str(tmp_path / "empty")).load("train")


def test_shots_are_solved_examples_of_train_before_every_prompt(put: Put) -> None:
    put("gsm8k/train.jsonl", [row(number) for number in range(100)])
    bare = {split: Gsm8k().load(split) for split in get_args(Split)}
    shot = {split: Gsm8k(shots=2).load(split) for split in get_args(Split)}
    examples = [
        turn
        for prompt, solution in zip(bare["train"]["prompt"][:2], bare["train"]["solution"][:2], strict=True)
        for turn in (*prompt, {"role": "assistant", "content": solution})
    ]
    assert list(shot["train"]["id"]) == list(bare["train"]["id"][2:])  # nothing is asked that stands solved above it
    for split, skipped in (("train", 2), ("validation", 0), ("test", 0)):
        asked = list(bare[split]["prompt"])[skipped:]
        assert list(shot[split]["prompt"]) == [[*examples, *prompt] for prompt in asked]


@pytest.mark.parametrize("shots", [-1, 1.5, True])
def test_shots_that_are_no_number_of_examples(shots: Any) -> None:
    for make in (Gsm8k, partial(MultipleChoice, "arc_easy"), partial(Code, "mbpp"), HendrycksMath):
        with pytest.raises(UserError, match=rf"shots must be a whole number of 0 or more, not {shots}"):
            make(shots=shots)


def test_more_shots_than_train_has_rows(put: Put) -> None:
    put("gsm8k/train.jsonl", [row(number) for number in range(100)])
    with pytest.raises(UserError, match=r"gsm8k: train has \d+ rows, too few for 100 shots"):
        Gsm8k(shots=100).load("test")


def test_a_single_file_that_is_named_like_a_split_is_that_split(put: Put) -> None:
    file = put("elsewhere/test.jsonl.gz", [row(number) for number in range(30)])
    assert ids(Gsm8k(path=str(file)), "test") == [f"row:{number}" for number in range(30)]
    with pytest.raises(UserError, match=r"test\.jsonl\.gz: too few rows \(test 30\): none is left for a train split"):
        Gsm8k(path=str(file)).load("train")
    train = put("elsewhere/train.jsonl", [row(number) for number in range(60)])
    assert sum(len(ids(Gsm8k(path=str(train)), split)) for split in get_args(Split)) == 60
    yes_or_no = [{"question": f"is {n} even", "passage": "Numbers.", "answer": True} for n in range(9)]
    validation = put("elsewhere/validation.jsonl", yes_or_no)  # which is what everybody's test is
    assert len(ids(MultipleChoice(kind="boolq", path=str(validation)), "test")) == 9


def test_the_hub_is_asked_where_there_is_no_file(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([row(number) for number in range(*{"train": (80,), "test": (90, 99)}[split])])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert ids(Gsm8k(), "test") == [f"test:{number}" for number in range(9)]
    assert set(asked) == {("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")}


@pytest.mark.parametrize("folder_is_set", [True, False])
def test_an_unreachable_hub(put: Put, monkeypatch: pytest.MonkeyPatch, folder_is_set: bool, tmp_path: Path) -> None:
    if not folder_is_set:
        monkeypatch.delenv("SELFADAPT_DATA")

    def load_dataset(*args: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach it,\nsorry")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        Gsm8k().load("train")
    message = str(error.value)
    place = str(tmp_path / "data") if folder_is_set else "$SELFADAPT_DATA"
    assert f"{place}/gsm8k/train.jsonl[.gz]" in message
    for part in ("openai/gsm8k", "Couldn't reach it, sorry", "path"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "Why?"}, "the field 'answer' is missing"),
        ({"answer": "#### 1"}, "the field 'question' is missing"),
        ({"question": 7, "answer": "#### 1"}, "the field 'question' must be a text"),
        ({"question": "Why?", "answer": "so"}, "the field 'answer' must end in '#### number'"),
        ({"question": "Why?", "answer": 7}, "expected string"),
    ],
)
def test_a_row_that_cannot_be_read(put: Put, bad: dict[str, Any], message: str) -> None:
    file = put("gsm8k/train.jsonl", [row(0), bad])
    messages = []
    for split in get_args(Split):
        try:
            Gsm8k().load(split)
        except UserError as error:
            messages.append(str(error))
    assert any(f"{file}:2: " in text and message in text for text in messages)


def test_files_that_are_no_rows(put: Put) -> None:
    file = put("gsm8k/train.jsonl", [])
    with pytest.raises(UserError, match=r"too few rows \(train 0\): none is left for a train split"):
        Gsm8k().load("train")
    file.write_text('{"question": \n')
    with pytest.raises(UserError, match=r"train\.jsonl:1: not JSON"):
        Gsm8k().load("train")
    with pytest.raises(UserError, match="unknown split 'dev'"):
        Gsm8k().load("dev")  # type: ignore[arg-type]


PUBLISHED = ["gsm8k", "arc_easy", "arc_challenge", "boolq", "openbookqa", "piqa", "winogrande", "mbpp"]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_real_splits_are_disjoint_and_their_rows_judged_rightly(kind: str, real_data: Path) -> None:
    domain = KINDS[kind]() if kind == "gsm8k" else KINDS[kind](kind=kind)
    parts = {split: domain.load(split) for split in get_args(Split)}
    asked = {split: questions(domain, split) for split in parts}
    assert all(not asked[a] & asked[b] for a, b in combinations(asked, 2))
    assert len(parts["train"]) > len(parts["test"]) > 30
    if kind == "mbpp":
        return  # whose answers are run, in test_code.py
    rows = parts["test"].select(range(30))
    columns = {name: rows[name] for name in rows.column_names}
    target = "solution" if kind == "gsm8k" else "answer"
    assert domain.reward(rows[target], **columns) == [1.0] * 30
    assert domain.reward([""] * 30, **columns) == [0.0] * 30


def test_kinds_need_nothing_but_the_kind() -> None:
    for kind in get_args(ChoiceKind):
        domain = MultipleChoice(kind=kind)
        assert domain.name == kind
        assert domain.description.endswith(".")
