"""The pages that a newcomer reads first, and the notebook: their commands and programs, on the built-in base."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from selfadapt.cli import main

ROOT = Path(__file__).parent.parent
blocks = runpy.run_path(str(ROOT / "tests" / "tutorial.py"))["blocks"]
NOTEBOOK = ROOT / "docs" / "notebooks" / "two_passes.ipynb"


def said_by(page: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """What a page's blocks print, in their order; its programs share their names."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / page):
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
            continue
        assert block.language == "sh", f"nobody runs a block of {block.language}"
        for line in block.text.replace("\\\n", " ").splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            main()
    return capsys.readouterr().out


def test_concepts_hold(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with torch.random.fork_rng():
        said_by("concepts.md", monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("get_started.md", ["There are 6 x 7 = 42 eggs", "boxes with 7 eggs each, and 6 x", "Paris", "Noah has 6 x 3"]),
        (
            "two_passes.md",
            ["('stories', 'groups', 'relations', 'sums')", "Kate has 8 + 7 = 15", "0.25 There are 6 x 7"],
        ),
    ],
)
def test_a_page_prints_what_it_shows(
    page: str, shown: list[str], smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    said = said_by(page, monkeypatch, capsys)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for line in shown:
        assert line in said
        assert line in text


@pytest.mark.slow
def test_the_notebook_says_what_it_was_committed_with(smollm2_folder: Path) -> None:
    committed = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    executed = runpy.run_path(str(ROOT / "docs" / "generate" / "run_notebook.py"))["executed"]
    made, _ = executed(committed)
    assert printed(made) == printed(committed)
    assert any("image/png" in output.get("data", {}) for output in outputs(made))


def printed(notebook: dict[str, Any]) -> str:
    return "".join(line for output in outputs(notebook) for line in output.get("text", []))


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
