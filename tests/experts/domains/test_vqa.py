"""Questions about pictures: what an answer earns, and what a folder must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experts.domains.vqa import Vqa, accuracy
from experts.outside.errors import UserError

ROW = {"image": "1.png", "question": "What is it?", "answers": ["a stop sign", "stop sign", "Stop-sign.", "a board"]}


@pytest.fixture
def vqa(tmp_path: Path) -> Vqa:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "1.png")
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"answers": ["two"]}) + "\n")
    return Vqa("signs", "Signs.", str(tmp_path))


def test_rows_have_a_chat_a_picture_and_the_most_common_answer(vqa: Vqa) -> None:
    rows = vqa.load("train")
    assert rows["prompt"][0] == [{"role": "user", "content": f"What is it?\n\n{vqa.instruction}"}]
    assert rows[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert (rows[0]["answer"], rows[1]["answer"]) == ("a stop sign", "two")
    assert rows["id"] == ["train-1", "train-3"]


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("stop sign", 1.0),
        ("The stop sign.", 1.0),
        ("A board", 1 / 3),
        ("", 0.0),
        ("it is a stop sign", 0.0),
        ("the", 0),
    ],
)
def test_an_answer_earns_the_share_of_three_people(vqa: Vqa, text: str, earned: float) -> None:
    completion = [{"role": "assistant", "content": text}]
    assert vqa.reward([completion], answers=[ROW["answers"]]) == [pytest.approx(earned)]


def test_few_answers_are_enough_where_there_are_few() -> None:
    assert accuracy("2", ["two"]) == accuracy("Two!", ["2", "two"]) == 1.0
    assert accuracy("2", ["two", "three"]) == 0.5


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("3 5", "3.5"),
        ("35", "3.5"),
        ("3-5", "3.5"),
        ("-5", "5"),
        ("1 2", "1/2"),
        ("330", "3:30"),
        ("not red", "red"),
        ("", "?"),
    ],
)
def test_another_number_or_word_earns_nothing(text: str, other: str) -> None:
    assert accuracy(text, [other]) == 0
    assert accuracy(other, [text]) == 0


@pytest.mark.parametrize("text", ["ＲＥＤ", "red</s>", "<answer>red</answer>", "red\u200b"])
def test_an_answer_counts_whatever_is_around_it_and_however_it_is_encoded(text: str) -> None:
    assert Vqa("signs", "Signs.", "nowhere").reward([text], answers=[["red"]]) == [1]


def test_a_letter_that_is_also_an_article_is_an_answer() -> None:
    assert accuracy("A.", ["a"]) == 1


def test_thousands_are_one_number() -> None:
    assert accuracy("$1,000.", ["1000"]) == accuracy("3:30", ["3:30"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"train\.jsonl:1: not JSON"),
        ({"image": 3}, r"train\.jsonl:1: a line must hold image, question and a list of answers"),
        ({"image": "1.png"}, "'question'"),
        (ROW | {"answers": []}, "not a list of strings"),
        (ROW | {"answers": "red"}, "not a list of strings"),
        (ROW | {"image": "2.png"}, r"the picture .*2\.png cannot be loaded"),
        (ROW | {"image": "train.jsonl"}, "cannot be loaded"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(vqa: Vqa, line: Any, message: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (Path(vqa.source) / "train.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        vqa.load("train")
    assert "\n" not in str(refusal.value)


def test_missing_files_are_named(vqa: Vqa, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        vqa.load("test")
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"test\.jsonl has no rows"):
        vqa.load("test")
