"""lm-eval's tasks by name, and the fields their data must have."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from experts.outside.errors import UserError
from selfadapt.harness.tasks import load_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": "a", "answer": 0, "hint": "b", "choices": ["c", "d"]}, {"question": "e", "answer": 1}]
    rows[1]["choices"] = ["f", "g"]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n\n")
    for name in ("one", "two"):
        write(tmp_path, name, tag="both")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"group": "all", "task": ["one", "two"]}))
    return tmp_path


def write(folder: Path, name: str, **fields: Any) -> None:
    document = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": [str(folder / "rows.jsonl.gz")]}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize(
    ("names", "loaded"), [(["one"], ["one"]), (["o*", "tw?", "one"], ["one", "two"]), (["both"], ["one", "two"])]
)
def test_names_patterns_and_tags(
    folder: Path, names: list[str], loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_ours(monkeypatch)
    assert [task.task_name for task in load_tasks(names, folder)[1]] == loaded  # type: ignore[union-attr]


def test_a_group_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_ours(monkeypatch)
    (group,) = load_tasks(["all"], folder)[1]
    assert [task.task_name for task in group.get_all_tasks()] == ["one", "two"]  # type: ignore[union-attr]


def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out lm-eval's own hundreds of task files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    original = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **k: original(self, **{**k, "include_defaults": False}))


@pytest.mark.parametrize(
    "text",
    [
        "{{question}}{% if hint %} ({{hint}}){% endif %}",
        "{{question}} {{hint if hint else '-'}}",
        "{{question}} {{hint or '-'}}",
        "{{question}} {{hint | default('-')}}",
        "{% set shown = question %}{{shown}} {{range(3) | list}}",
    ],
)
def test_a_field_that_need_not_be_shown_may_be_missing(folder: Path, text: str) -> None:
    write(folder, "hinted", doc_to_text=text)
    assert len(load_tasks(["hinted"], folder)[1]) == 1


@pytest.mark.parametrize("text", ["hint", "{{question}} {{hint}}", "{{hint.upper()}}", "{{question ~ hint}}"])
def test_a_field_that_is_shown_may_not(folder: Path, text: str) -> None:
    write(folder, "hinted", doc_to_text=text)
    with pytest.raises(UserError, match=r"rows.jsonl.gz:2: no field 'hint', which the task 'hinted' needs"):
        load_tasks(["hinted"], folder)


def test_data_that_cannot_be_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write(folder, "far", dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(UserError, match=r"with its data from 'nobody/nothing': .*local file \(--include-path\)"):
        load_tasks(["far"], folder)


def test_programs_of_the_models_are_not_run_by_the_way(folder: Path) -> None:
    write(folder, "coding", unsafe_code=True)
    with pytest.raises(UserError, match="runs programs that the model writes"):
        load_tasks(["coding"], folder)
