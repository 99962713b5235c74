"""The demo on a tiny base: its report, and that an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experts.expert import read_config
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


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(expert, "plot_curve", lambda *_: 1 / 0)  # stopped while the expert is written
        with pytest.raises(ZeroDivisionError):
            demo.demo(tmp_path / "demo")
    assert not (tmp_path / "demo" / "numbers").exists()
    begun = (tmp_path / "demo" / "numbers.unfinished" / "training_log.jsonl").read_text()
    report = demo.demo(tmp_path / "demo")
    assert (Path(report["expert"]) / "training_log.jsonl").read_text() == begun  # no step was made twice
