"""One reader for what people give: whatever their editor puts around the lines, one row is one row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.outside.reading import read_json, read_lines, read_objects, read_text

ODD = "one\u2028line\u2029with\u0085marks\x0b\x0c"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("last", [True, False])
def test_one_row_is_one_row(tmp_path: Path, ending: str, encoding: str, last: bool) -> None:
    rows = [{"text": ODD}, {"text": "Ünïcödé 😀"}]
    text = ending.join(json.dumps(row, ensure_ascii=False) for row in rows).replace(ending, ending * 2, 1)
    path = tmp_path / "rows.jsonl"
    data = (text + ending * last).encode(encoding)
    for content in (data, gzip.compress(data)):
        path.write_bytes(content)
        read = list(read_objects(path))
        assert [row for _, _, row in read] == rows
        assert [number for _, number, _ in read] == [1, 3]


def test_marks_within_a_line_do_not_part_it(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(f"{ODD}two\n\n   \nthree", encoding="utf-8")
    assert list(read_lines(path)) == [(1, f"{ODD}two"), (4, "three")]


def test_a_file_that_was_put_together_of_several_has_a_mark_before_each(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff\ufeff{"a": 1}\n\ufeff{"a": 2}\n\ufeff\n', encoding="utf-8")
    assert [row["a"] for _, _, row in read_objects(path)] == [1, 2]


def test_a_line_that_is_still_being_written_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 1}\n{"id": 2}\r\n{"id": 3')
    assert [fields for _, _, fields in read_objects(path, growing=True)] == [{"id": 1}, {"id": 2}]
    with pytest.raises(UserError, match=r"rows\.jsonl:3: not JSON"):
        list(read_objects(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', r"rows\.jsonl:2: not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), r"rows\.jsonl:1: holds a NUL character"),
        (b'{"a": 1}\n{"a": "\0"}', r"rows\.jsonl:2: holds a NUL character"),
        (b'{"a": "\\ud800"}', r"rows\.jsonl:1: an escape is half"),
        (b"[" * 100_000, r"rows\.jsonl:1: not JSON \(nested too deep\)"),
        (b'{"a": 1' + b"0" * 5000 + b"}", r"rows\.jsonl:1: not JSON"),
        (b"[1]", r"rows\.jsonl:1: not a JSON object"),
        (gzip.compress(b'{"a": 1}', mtime=0)[:-9], "cannot read"),
    ],
)
def test_what_is_no_row_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_objects(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            read_text(path)


def test_a_mixture_with_a_mark_is_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "MIX.json"
    path.write_text('{"weights": {"a": 0.5}}', encoding="utf-8-sig")
    assert Mixture.read(path)[0] == {"a": 0.5}
    assert read_json(path) == {"weights": {"a": 0.5}}
