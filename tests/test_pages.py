"""The pages that a newcomer reads first, and the notebook: their commands and programs, on the built-in base."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from experts import ExpertLibrary
from selfadapt.grid.results import read_results
from tests.running_pages import ROOT, run_page

NOTEBOOK = ROOT / "docs" / "notebooks" / "two_passes.ipynb"


def test_concepts_hold(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with torch.random.fork_rng():
        run_page("concepts.md", monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("get_started.md", ["There are 6 x 7 = 42 eggs", "boxes with 7 eggs each, and 6 x", "Paris", "Noah has 6 x 3"]),
        (
            "two_passes.md",
            ["('stories', 'groups', 'relations', 'sums')", "Kate has 8 + 7 = 15", "0.25 There are 6 x 7"],
        ),
        ("serving.md", ["mix:groups=1 There are 6 x 7 = 42 eggs in each box."]),
        (
            "text_to_lora.md",
            ["There are 6 x 7 = 42 eggs in each box.", "France is Paris", "nearest groups, cosine 0.9", "nearest sums"],
        ),
    ],
)
def test_a_page_prints_what_it_shows(
    page: str, shown: list[str], smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    said = "".join(each.out for each in run_page(page, monkeypatch, capsys))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for line in shown:
        assert line in said
        assert line in text


@pytest.mark.long
def test_a_comparison_runs_from_its_file_to_a_library(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "bases").mkdir(parents=True)
    (tmp_path / "cache" / "bases" / "smollm2-135m").symlink_to(tiny_folder)  # the page's base is a tiny one here
    monkeypatch.chdir(tmp_path)
    said = "".join(each.out for each in run_page("comparing.md", monkeypatch, capsys))
    assert "the expert alone: 0 the LoRA alone: 0" in said  # it answers nothing
    assert [line.method for line in read_results(Path("runs/small/results.jsonl"))] == ["base", "svf", "lora"]
    assert ExpertLibrary.open("my-library").names == ["groups"]
    assert Path("groups.png").stat().st_size > 0


@pytest.mark.slow
def test_a_comparison_ends_as_its_page_says(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("comparing.md", monkeypatch, capsys)
    right = {line.method: line.right / line.n for line in read_results(Path("runs/small/results.jsonl"))}
    assert right["base"] + 0.2 < min(right["svf"], right["lora"])


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
