"""`selfadapt experts show NAME --plot`: a picture of what is changed, or one line and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experts import ExpertLibrary
from experts.exchange.lora import Lora


@pytest.fixture
def mine(library: ExpertLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder; one works in an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return library.folder


def test_an_expert_is_drawn_under_its_name_or_where_one_says(run: Any, mine: Path) -> None:
    assert run("experts", "show", "a", "--library", mine, "--plot")[:2] == (0, "a.png\n")
    assert Image.open("a.png").format == "PNG"
    code, out, _ = run("experts", "show", "b", "--plot", "new/b.png", "--library", mine, "--json")
    document = json.loads(out)
    assert (code, document["plot"], document["name"]) == (0, "new/b.png", "b")
    assert Image.open("new/b.png").format == "PNG"
    assert Path("new/b.png").read_bytes() != Path("a.png").read_bytes()


def test_a_lora_is_drawn(run: Any, mine: Path, library: ExpertLibrary) -> None:
    matrix = "model.layers.1.mlp.up_proj"
    Lora({matrix: torch.ones(2, 32)}, {matrix: torch.ones(48, 2)}, base=library.base).write("l")
    library.add("l")
    assert run("experts", "show", "l", "--library", mine, "--plot")[:2] == (0, "l.png\n")
    assert Image.open("l.png").format == "PNG"


@pytest.mark.parametrize(
    ("name", "path", "line"),
    [
        ("a", "a.pdf", "does not end in .png"),
        ("a", "", "does not end in .png"),
        ("a", "there.png", "there.png exists already"),
        ("a", "file/a.png", "cannot write to file"),
        ("x", "x.png", "unknown expert 'x'"),
    ],
)
def test_a_bad_path_is_one_line(run: Any, mine: Path, name: str, path: str, line: str) -> None:
    for taken in ("there.png", "file"):
        Path(taken).write_text("mine")
    code, out, err = run("experts", "show", name, "--library", mine, "--plot", path)
    assert (code, out) == (1, "")
    assert line in err
    assert err.count("\n") == 1
    assert sorted(each.name for each in Path().iterdir()) == ["file", "there.png"]
    assert Path("there.png").read_text() == "mine"
