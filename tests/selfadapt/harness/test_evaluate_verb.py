"""`selfadapt eval`: lm-eval's results as lm-eval gives them, and a mistake in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from experts import ExpertLibrary


@pytest.mark.long
def test_the_verb(run: Any, library: ExpertLibrary, task_folder: Path, tmp_path: Path) -> None:
    args = ("--tasks", "choice,writing", "--include-path", task_folder, "--limit", 4, "--batch-size", 2)
    expert = ("--library", library.folder, "--dispatch", "b")
    out_folder = ("--output-path", tmp_path / "out", "--log-samples")
    code, out, err = run("eval", *args, *expert, *out_folder, "--json", "--seed", 7)
    assert code == 0, err
    document = json.loads(out)
    wanted = lm_eval.simple_evaluate(
        model="selfadapt",
        model_args={"library": library.folder, "dispatch": "b"},
        tasks=["choice", "writing"],
        task_manager=TaskManager(include_path=task_folder, include_defaults=False),
        limit=4,
        batch_size=2,
        device="cpu",
        bootstrap_iters=10,
    )
    assert document["results"].keys() == wanted["results"].keys()
    assert document["results"]["choice"]["acc,none"] == wanted["results"]["choice"]["acc,none"]
    assert document["n-samples"]["writing"] == {"original": 18, "effective": 4}
    assert document["mixture"] == {"weights": {"b": 1.0}, "abstained": 0.0}
    assert document["config"]["random_seed"] == document["config"]["fewshot_seed"] == 7
    assert "samples" not in document
    files = sorted(path.name.split("_2")[0] for path in (tmp_path / "out").glob("*/*"))
    assert files == ["results", "samples_choice", "samples_writing"]
    (log,) = (tmp_path / "out").glob("*/samples_choice*")
    assert [json.loads(line)["mixture"] for line in log.read_text().splitlines()] == [{"b": 1.0}] * 4

    code, out, err = run("eval", *args, "--model", library.base, "--log-samples", "--json")
    assert [s["mixture"] for s in json.loads(out)["samples"]["choice"]] == [{}] * 4, err
    code, out, err = run("eval", *args, *expert)
    assert code == 0, err
    assert out.startswith("|")
    assert "mixture: b 1.00" in out


def test_a_mistake_of_the_users_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, library: ExpertLibrary, task_folder: Path
) -> None:
    def error(*args: object) -> str:
        code, out, err = run("eval", "--include-path", task_folder, "--library", library.folder, *args)
        assert (code, out) == (1, "")
        return err.splitlines()[-1]

    def write(name: str, **fields: Any) -> None:
        document = yaml.safe_load((task_folder / "writing.yaml").read_text())
        (task_folder / f"{name}.yaml").write_text(yaml.safe_dump({**document, **fields, "task": name}))

    rows = (task_folder / "rows.jsonl").read_text().splitlines()
    (task_folder / "holes.jsonl").write_text("\n".join([*rows[:2], '{"question": "red"}', *rows[3:]]))
    (task_folder / "broken.jsonl").write_text("\n".join([*rows[:1], '{"question": "re']))
    for name in ("holes", "broken", "gone"):
        write(name, dataset_kwargs={"data_files": {"test": str(task_folder / f"{name}.jsonl")}})
    write("typo", doc_to_text="{{qestion}}")
    write("nosplit", test_split="tset")

    assert "holes.jsonl:3: no field 'answer', which the task 'holes' needs" in error("--tasks", "holes")
    assert "broken.jsonl:2: not JSON" in error("--tasks", "choice,broken")
    assert "no such file" in error("--tasks", "gone")
    assert ":1: no field 'qestion'" in error("--tasks", "typo")
    assert "the task 'nosplit' cannot be loaded" in error("--tasks", "nosplit")
    assert "unknown dispatcher or expert 'c'" in error("--tasks", "choice", "--dispatch", "c")
    assert "no task to evaluate" in error("--tasks", ",")
    assert "give --output-path or --json" in error("--tasks", "choice", "--log-samples")
    assert "--limit must be" in error("--tasks", "choice", "--limit", "0")
    assert "--batch-size must be" in error("--tasks", "choice", "--batch-size", "many")
    (task_folder / "torn.yaml").write_text("task: [")
    # lm-eval's own hundreds of task files take seconds to read; a name is looked for among ours here.
    original = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **k: original(self, **{**k, "include_defaults": False}))
    assert "torn.yaml is not a task file" in error("--tasks", "torn")
    (task_folder / "torn.yaml").unlink()
    assert "unknown task 'wrting'; did you mean 'writing'" in error("--tasks", "wrting")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'selfadapt[eval]'" in error("--tasks", "choice")


def test_a_chats_template_has_its_arguments(run: Any, library: ExpertLibrary, task_folder: Path) -> None:
    template = "{% if thinks is not defined or thinks %}{{ raise_exception('it thinks') }}{% endif %}{{ messages }}"
    (Path(library.base) / "chat_template.jinja").write_text(template)
    asked = ["eval", "--tasks", "choice", "--include-path", task_folder, "--limit", 2, "--model", library.base]
    assert run(*asked, "--apply-chat-template", "--chat-template-kwargs", "thinks", "False")[0] == 0
    code, _, err = run(*asked, "--apply-chat-template")
    assert (code, "it thinks" in err) == (1, True)
    code, _, err = run(*asked, "--chat-template-kwargs", "thinks", "False")
    assert (code, "give --apply-chat-template too" in err) == (1, True)
