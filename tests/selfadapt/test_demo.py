"""The demo on a tiny base: its report, and that an interrupted one goes on."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experts.expert import read_config
from experts.outside.errors import UserError
from experts.training import expert
from selfadapt import demo


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.setattr(demo, "find_recipe", lambda name: recipe)


def test_it_leaves_a_report_and_an_expert(tmp_path: Path) -> None:
    report = demo.demo(tmp_path / "demo")
    assert json.loads((tmp_path / "demo" / "report.json").read_text()) == json.loads(json.dumps(report))
    wanted = {"base_accuracy", "expert_accuracy", "n", "p_value", "train_seconds", "parameters", "lora_parameters"}
    assert wanted <= set(report)
    # Two layers, q 32 → 32 and v 32 → 16, rank 16.
    assert report["lora_parameters"] == 2 * 16 * ((32 + 32) + (32 + 16))
    assert report["parameters"] == 14 * 8
    assert read_config(Path(report["expert"])).domain == "numbers"
    page = (tmp_path / "demo" / "report.md").read_text()
    picture = page.split("![training curve](")[1].split(")")[0]
    assert (tmp_path / "demo" / picture).is_file()
    assert demo.demo(tmp_path / "demo")["n"] == report["n"]  # done again


@pytest.mark.long
def test_it_begins_with_what_is_there(smollm2_folder: Path) -> None:
    console = Console(file=StringIO(), width=200)
    demo._show_two_passes(console, "smollm2-135m", 8)
    rows = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if "│" in line]  # type: ignore[attr-defined]
    prompts, who, answers, bases = (tuple(cell.strip() for cell in column) for column in zip(*rows, strict=True))
    assert list(prompts) == demo.PROMPTS
    assert who == ("stories", "groups", "relations", "the base")
    assert all((answer == base) == (by == "the base") for by, answer, base in zip(who, answers, bases, strict=True))


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(expert, "plot_curve", lambda *_: 1 / 0)  # stopped while the expert is written
        with pytest.raises(ZeroDivisionError):
            demo.demo(tmp_path / "demo")
    assert not (tmp_path / "demo" / "numbers").exists()
    begun = (tmp_path / "demo" / "numbers.unfinished" / "training_log.jsonl").read_text()
    report = demo.demo(tmp_path / "demo")
    assert (Path(report["expert"]) / "training_log.jsonl").read_text() == begun  # no step was made twice


@pytest.mark.parametrize("own", ["numbers/README.md", "numbers", "report.md", "report.json"])
def test_what_no_demo_wrote_stays(tmp_path: Path, own: str) -> None:
    folder = tmp_path / "demo"
    file = folder / own
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match="exists already, and this command did not write it"):
        demo.demo(folder)
    assert file.read_text() == "{}"
    assert [path for path in folder.rglob("*") if path.is_file()] == [file]


def test_a_demo_that_was_stopped_before_its_report_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo.demo(tmp_path)
    assert (tmp_path / "numbers").is_dir()
    demo.demo(tmp_path)
