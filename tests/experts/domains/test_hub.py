"""Data sets of the user's own: their columns, their splits, and what is said where they are not as the recipe says."""

from __future__ import annotations

import csv
import json
from itertools import chain, combinations
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest
from PIL import Image

from experts.domains import Split, load_rows
from experts.domains.hub import Hub
from experts.outside.errors import UserError

COLUMNS = {"prompt_column": "question", "answer_column": "target"}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"question": f"What is {number} + 1?", "target": f"{number + 1:03}", "low": number / 2} | fields


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def domain(path: Path | str, **options: Any) -> Hub:
    options = {"judged_by": "last_number", **COLUMNS} | options
    return Hub(name="mine", description="Sums.", path=str(path), **options)


def questions(domain: Hub, split: Split) -> list[str]:
    return [prompt[-1]["content"] for prompt in load_rows(domain, split)["prompt"]]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json", "jsonl"])
def test_a_file_is_dealt_out_by_its_prompts(suffix: str, tmp_path: Path) -> None:
    mine = domain(write(tmp_path / f"mine.{suffix}", [row(number) for number in range(80)]))
    parts = {split: questions(mine, split) for split in get_args(Split)}
    assert sorted(chain(*parts.values())) == sorted(row(number)["question"] for number in range(80))
    assert len(parts["train"]) > 50
    assert not any(set(parts[a]) & set(parts[b]) for a, b in combinations(parts, 2))
    assert parts == {split: questions(mine, split) for split in get_args(Split)}
    first = mine.load("train")[0]
    number = int(first["id"].removeprefix("train:"))
    assert first["answer"] == f"{number + 1:03}"  # as it is written
    assert first["low"] == number / 2  # what a reward function may want


def test_splits_of_the_data_set_are_taken_and_the_others_dealt(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.csv", [row(number) for number in range(60)])
    write(tmp_path / "mine" / "test.csv", [row(number) for number in range(50, 70)])
    mine = domain(tmp_path / "mine")
    test, validation, train = (questions(mine, split) for split in ("test", "validation", "train"))
    assert test == [row(number)["question"] for number in range(50, 70)]
    assert sorted(train + validation) == sorted(row(number)["question"] for number in range(50))
    assert validation
    swapped = domain(tmp_path / "mine", train_split="test", test_split="train")
    assert questions(swapped, "test") == [row(number)["question"] for number in range(60)]


def test_a_hub_id_is_asked_for_where_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((path, config, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list([row(number) for number in range(60)]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(domain("somebody/sums", config="main", revision="v1").load("train")) > 30
    assert asked == [("somebody/sums", "main", "v1")]

    def fails(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach it,\nsorry")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(UserError, match=r"file or folder, and the hub's data set somebody/sums.*sorry") as error:
        domain("somebody/sums").load("train")
    assert "\n" not in str(error.value)


def test_prompts_are_chats(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]
    chats = [row(n, question=[*turns, {"role": "user", "content": f"And {n}?"}], note="x") for n in range(60)]
    mine = domain(write(tmp_path / "mine.jsonl", chats), system_prompt="Be brief.", instruction="A number.")
    first = mine.load("train")[0]
    number = int(first["id"].removeprefix("train:"))
    asked = {"role": "user", "content": f"And {number}?\n\nA number."}
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, *turns, asked]


def test_choices_and_solutions(tmp_path: Path) -> None:
    rows = [row(n, target="B", options=["yes", "no"], why=f"For {n}.", completion="Not asked for.") for n in range(60)]
    mine = domain(
        write(tmp_path / "mine.jsonl", rows), judged_by="choice", choices_column="options", solution_column="why"
    )
    loaded = mine.load("train")
    assert loaded[0]["choices"] == ["yes", "no"]
    assert loaded[0]["solution"].startswith("For ")
    assert "completion" not in loaded.column_names  # which next-token prediction would learn
    assert mine.reward(["no", "yes"], answer=["B", "B"], choices=[["yes", "no"]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", ""), ("a.csv", "question,target\n"), ("a.tsv", ""), ("a.json", "[]"), ("a.json", ""), ("a.jsonl", "")],
)
def test_a_file_without_rows_is_said_to_be_one(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} has no rows"):
        load_rows(domain(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("options", "rows", "said"),
    [
        ({"prompt_column": "qestion"}, [row(0)], "unknown column 'qestion'; did you mean 'question'"),
        ({"answer_column": "answer"}, [row(0)], "unknown column 'answer'; known: low, question, target"),
        ({}, [row(0), row(1, target="")], "mine.csv train:1: the column 'target' is empty"),
        ({}, [row(0), row(1, question=" ")], "mine.csv train:1: the column 'question' is empty"),
        ({}, [row(0, target="none")], "last_number does not accept this row's own answer; correct it"),
        ({"test_split": "tset"}, [row(0)], "unknown split 'tset'; known: train"),
        ({}, [row(0)], r"too few rows \(train 1\) for a \w+ split: a hash .*; 40 rows are usually enough"),
        ({"judged_by": "lastnumber"}, [row(0)], "unknown reward 'lastnumber'; did you mean 'last_number'"),
        ({"answer_column": None}, [row(0)], "last_number needs answers"),
        ({"prompt_column": ""}, [row(0)], "prompt_column is empty; name a column, or leave prompt_column out"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], rows: list[Any], said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.csv", rows)

    def load_all() -> None:
        for split in get_args(Split):
            domain(file, **options).load(split)

    with pytest.raises(UserError, match=said) as error:
        load_all()
    assert "\n" not in str(error.value)


def test_what_separates_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("question;target\nWhat is 0 + 1?;1\nWhat is 1 + 1?;2\n")
    with pytest.raises(UserError, match=r"mine\.csv: its columns are separated by ';'; save it with commas"):
        domain(tmp_path / "mine.csv").load("train")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_text_in_another_encoding_is_one_line(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"mine.{suffix}", [row(n) for n in range(60)])
    file.write_bytes(file.read_bytes().replace(b"What", b"Wh\xe9t"))
    with pytest.raises(UserError, match=r"utf-8|UTF-8") as caught:
        domain(file).load("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("roles", [("human", "gpt"), ("human", "assistant")])
def test_unknown_roles_are_named(roles: tuple[str, str], tmp_path: Path) -> None:
    chats = [row(n, question=[{"role": role, "content": f"{n}?"} for role in roles]) for n in range(60)]
    mine = domain(write(tmp_path / "mine.jsonl", chats), answer_column=None, judged_by=None)
    wrong = "gpt" if "gpt" in roles else "human"
    with pytest.raises(UserError, match=f"unknown role '{wrong}'; the roles are system, user, assistant"):
        mine.load("train")


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere\.csv"):
        domain("nowhere.csv").load("train")
    (tmp_path / "mine.doc").write_text("?")
    with pytest.raises(UserError, match=r"mine\.doc is of an unknown kind; the kinds are \.csv"):
        domain(tmp_path / "mine.doc").load("train")
    with pytest.raises(UserError, match="has no split 'train', only test; name the one to train on in train_split"):
        domain(write(tmp_path / "test.csv", [row(0)])).load("train")


def test_pictures_come_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    colours = ["red", "blue"] * 20
    for number, colour in enumerate(colours):
        Image.new("RGB", (4, 4), colour).save(tmp_path / "pictures" / f"{number}.png")
    rows = [row(number, picture=f"pictures/{number}.png") for number in range(40)]
    mine = domain(write(tmp_path / "mine.csv", rows), image_column="picture", system_prompt="Look.")
    for got in load_rows(mine, "train"):
        number = int(got["question"].split()[2])
        assert got["image"].getpixel((0, 0)) == ((255, 0, 0) if colours[number] == "red" else (0, 0, 255))
        assert "picture" not in got
    # What datasets has as a picture itself.
    data = datasets.Dataset.from_list([row(n) | {"image": Image.new("RGB", (4, 4), c)} for n, c in enumerate(colours)])
    data.to_parquet(tmp_path / "own.parquet")
    inside = domain(tmp_path / "own.parquet", image_column="image")
    assert load_rows(inside, "test")[0]["image"].size == (4, 4)
    missing = domain(write(tmp_path / "bad.csv", [*rows[:20], row(99, picture="none.png")]), image_column="picture")
    with pytest.raises(UserError, match=r"there is no picture .*none\.png"):
        [load_rows(missing, split) for split in get_args(Split)]
    with pytest.raises(UserError, match="unknown column 'pictur'; did you mean 'picture'"):
        load_rows(domain(tmp_path / "mine.csv", image_column="pictur"), "train")
    with pytest.raises(UserError, match="the column 'low' holds no pictures"):
        load_rows(domain(write(tmp_path / "low.json", rows), image_column="low"), "train")
