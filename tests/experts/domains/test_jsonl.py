from __future__ import annotations

import gzip
import json
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from experts.domains import KINDS, Split
from experts.domains.jsonl import Jsonl
from experts.domains.reasoning_gym import ReasoningGym
from experts.outside.errors import UserError


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"What is {number} + 1?", "answer": str(number + 1)} | fields


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def domain(path: Path | str, **options: Any) -> Jsonl:
    options = {"judged_by": "last_number"} | options
    return Jsonl(name="mine", description="Sums.", path=str(path), **options)


def questions(domain: Jsonl, split: Split) -> list[str]:
    return [prompt[-1]["content"] for prompt in domain.load(split)["prompt"]]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write(tmp_path / "sums.jsonl", [row(number) for number in range(200)])


def test_the_kinds() -> None:
    assert KINDS["reasoning_gym"] is ReasoningGym
    assert KINDS["jsonl"] is Jsonl


def test_splits_are_disjoint_deterministic_and_complete(sums: Path) -> None:
    parts = {split: questions(domain(sums), split) for split in get_args(Split)}
    assert sorted(chain(*parts.values())) == sorted(row(number)["prompt"] for number in range(200))
    assert 140 < len(parts["train"]) < 180
    assert parts == {split: questions(domain(sums), split) for split in get_args(Split)}


def test_new_lines_move_no_old_ones(sums: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", [row(number) for number in reversed(range(300))])
    for split in get_args(Split):
        assert set(questions(domain(sums), split)) <= set(questions(domain(more), split))


def test_equal_prompts_share_a_split(tmp_path: Path) -> None:
    chats = [row(number, prompt=[{"content": row(number)["prompt"], "role": "user"}]) for number in range(100)]
    twice = write(tmp_path / "twice.jsonl", [row(number) for number in range(100)] + chats)
    for split in get_args(Split):
        asked = questions(domain(twice), split)
        assert len(asked) == 2 * len(set(asked))


def test_separate_files(sums: Path, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", [row(1000)])
    test = write(tmp_path / "test.jsonl.gz", [row(2000), row(2001)])
    mine = domain(sums, validation_path=str(validation), test_path=str(test))
    assert len(mine.load("train")) == 200
    assert questions(mine, "validation") == ["What is 1000 + 1?"]
    assert questions(mine, "test") == ["What is 2000 + 1?", "What is 2001 + 1?"]


def test_one_separate_file(sums: Path, tmp_path: Path) -> None:
    mine = domain(sums, test_path=str(write(tmp_path / "test.jsonl", [row(1000)])))
    assert len(mine.load("train")) + len(mine.load("validation")) == 200
    assert questions(mine, "validation") == questions(domain(sums), "validation")


def test_rows(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}]
    rows = [row(0, id=7), row(1), "", row(2, id="x", prompt=chat, choices=["3", "4"])]
    test = write(tmp_path / "test.jsonl", rows)
    loaded = domain(test, test_path=str(test), instruction="A number.").load("test")
    assert loaded["id"] == ["7", "test.jsonl:2", "x"]
    assert loaded["choices"] == [[], [], ["3", "4"]]
    assert loaded[0]["prompt"] == [{"role": "user", "content": "What is 0 + 1?\n\nA number."}]
    assert loaded[2]["prompt"] == [chat[0], {"role": "user", "content": "Two?\n\nA number."}]


def test_a_chat_may_come_in_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "One?"}, {"type": "text", "text": "Two?"}]
    chat = [{"role": "assistant", "content": None, "tool_calls": None}, {"role": "user", "content": parts}]
    test = write(tmp_path / "test.jsonl", [row(0, prompt=chat)])
    (prompt,) = domain(test, test_path=str(test)).load("test")["prompt"]
    assert prompt == [{"role": "assistant", "content": ""}, {"role": "user", "content": "One?\nTwo?"}]


def test_reward(sums: Path) -> None:
    columns: dict[str, Any] = {"answer": ["2", "3"], "choices": [[], []], "id": ["a", "b"], "trainer_state": None}
    assert domain(sums).reward(["it is 2", "it is 2"], **columns) == [1.0, 0.0]
    assert domain(sums).reward([[{"role": "assistant", "content": "2"}], []], **columns) == [1.0, 0.0]
    assert domain(sums, judged_by="exact").reward(["it is 2", "3"], **columns) == [0.0, 1.0]
    columns = {"answer": ["B", "B"], "choices": [["x", "y"], ["y", "z"]]}
    assert domain(sums, judged_by="choice").reward(["y", "y"], **columns) == [1.0, 0.0]


def test_paths_are_relative_to_here_or_to_the_data_folder(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("SELFADAPT_DATA", str(tmp_path))
    assert len(domain("sums.jsonl").load("train")) > 100
    write(here / "sums.jsonl", [row(5)])
    assert questions(domain("none.jsonl", test_path="sums.jsonl"), "test") == ["What is 5 + 1?"]
    with pytest.raises(UserError, match=rf"no file {here}/none.jsonl or {tmp_path}/none.jsonl$"):
        domain("none.jsonl").load("train")
    monkeypatch.delenv("SELFADAPT_DATA")
    with pytest.raises(UserError, match=rf"no file {here}/none.jsonl; SELFADAPT_DATA can"):
        domain("none.jsonl").load("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("\udcff", "not UTF-8 text"),
        ([1], "not a JSON object"),
        ({"prompt": "2?"}, "the field 'answer' is missing"),
        ({"answer": "2"}, "the field 'prompt' is missing"),
        (row(1, answer=2), "'answer' must be a string"),
        (row(1, prompt=2), "'prompt' must be a string, or a chat"),
        (row(1, prompt=[]), "'prompt' must be"),
        (row(1, prompt=[{"role": "user"}]), "'prompt' must be"),
        (row(1, prompt=[{"role": "assistant", "content": "2"}]), "'prompt' must be"),
        (row(1, prompt=[{"role": "user", "content": [{"type": "image", "image": "1.png"}]}]), "'prompt' must be"),
        (row(1, prompt=[{"role": "tool", "content": "2"}, {"role": "user", "content": "2"}]), "'prompt' must be"),
        (row(1, prompt="\ud800"), "an escape is half of a surrogate pair"),
        (row(1, answer="2 \ud800"), "an escape is half of a surrogate pair"),
        (row(1, choices="AB"), "'choices' must be a list of strings"),
        (row(1, choices=[1, 2]), "'choices' must be a list of strings"),
        (row(1, id=[1]), "'id' must be"),
        (row(1, answer="many"), "last_number does not accept this row's own answer; correct it"),
    ],
)
def test_malformed_lines(line: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + text.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UserError, match=rf"bad.jsonl:2: {message}") as caught:
        domain(path).load("train")
    assert "\n" not in str(caught.value)


def test_files_that_do_not_do(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(UserError, match="has no rows"):
        domain(empty).load("test")
    with pytest.raises(UserError, match="has no rows"):
        domain(empty, test_path=str(empty)).load("test")
    few = write(tmp_path / "few.jsonl", [row(1), row(2)])
    with pytest.raises(UserError, match=r"too few rows for a split by prompt \(train \d, validation \d, test \d\)"):
        domain(few).load("train")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps(row(1)).encode())[:-10])
    with pytest.raises(UserError, match="cannot read"):
        domain(broken).load("test")
    broken.write_bytes(b"{}")
    with pytest.raises(UserError, match="cannot read"):
        domain(broken).load("test")


def test_unknown_reward(sums: Path) -> None:
    with pytest.raises(UserError, match="unknown reward 'last_numbr'; did you mean 'last_number'"):
        domain(sums, judged_by="last_numbr")


def test_from_a_recipe() -> None:
    recipe = {"name": "sums", "description": "Sums.", "path": "sums.jsonl", "judged_by": "exact"}
    assert TypeAdapter(Jsonl).validate_python(recipe) == Jsonl("sums", "Sums.", "sums.jsonl", "exact")


def test_a_system_prompt_goes_before_several_turns(tmp_path: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Yes?"), ("user", "What is {} + 1?")]
    rows = [
        {"prompt": [{"role": r, "content": c.format(n)} for r, c in turns], "answer": str(n + 1)} for n in range(40)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = domain(file).load("train")
    told = domain(file, system_prompt="Be brief.").load("train")
    assert [[{"role": "system", "content": "Be brief."}, *prompt] for prompt in plain["prompt"]] == told["prompt"][:]
    assert "system_prompt=" not in repr(domain(file))
    rows[3]["prompt"] = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "?"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"chats\.jsonl:4: the prompt has a system message of its own"):
        [domain(file, system_prompt="Be brief.").load(split) for split in ("train", "validation", "test")]
