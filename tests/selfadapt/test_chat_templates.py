"""Bases that have no chat template read plain text; one that refuses what it is asked is one line, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experts import ExpertLibrary

NO_SYSTEM = """{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}{{ m['content'] }}{% endfor %}"""


def shown_by(folder: Path, template: str | None) -> None:
    """Gives the checkpoint in a folder another chat template, or none."""
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def examples(path: Path, chat: bool) -> Path:
    def prompt(number: int) -> Any:
        user = {"role": "user", "content": f"{number} + 1?"}
        return [{"role": "system", "content": "Add."}, user] if chat and number == 3 else user["content"]

    lines = (json.dumps({"prompt": prompt(number), "answer": str(number + 1)}) for number in range(4))
    path.write_text("\n".join(lines))
    return path


def refused(run: Any, *args: object) -> str:
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize("template", [NO_SYSTEM, "{{ messages[0].content"])
def test_every_verb_says_so(
    run: Any,
    library: ExpertLibrary,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown_by(Path(library.base), template)
    said = {NO_SYSTEM: "System role not supported"}.get(template, "TemplateSyntaxError")
    system = template == NO_SYSTEM
    if not system:
        assert said in refused(run, "generate", "2 + 2?", "--library", library.folder, "--dispatch", "a")
        assert said in refused(run, "dispatch", "2 + 2?", "--library", library.folder, "--dispatch", "prompt")
        assert said in refused(run, "train", recipe, "--output", tmp_path / "expert")
    given = examples(tmp_path / "examples.jsonl", chat=system)
    assert said in refused(run, "adapt", given, "--output", tmp_path / "MIX.json", "--library", library.folder)
    assert not (tmp_path / "expert").exists()
    assert not (tmp_path / "expert.unfinished").exists()
    assert not (tmp_path / "MIX.json").exists()


@pytest.mark.parametrize("objective", ["reinforce", "next_token"])
def test_a_base_without_a_chat_template_learns_answers_and_is_exported(
    run: Any,
    tiny_folder: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    objective: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown_by(tiny_folder, None)
    if objective == "next_token":
        document = yaml.safe_load(recipe.read_text())
        document["training"] = {"objective": objective, "learning_rate": 0.05, "steps": 1, "sequences_per_step": 2}
        recipe.write_text(yaml.safe_dump(document | {"test_size": 4}))
    code, _, err = run("train", recipe, "--output", tmp_path / "expert")
    assert code == 0, err
    said = [record.getMessage() for record in caplog.records if record.name == "experts.outside.chats"]
    assert len(said) == 1
    shared = ["--library", tmp_path / "library"]
    assert run("experts", "add", tmp_path / "expert", *shared)[0] == 0
    assert run("generate", "2 + 2?", *shared, "--dispatch", "expert", "--max-new-tokens", 4)[0] == 0
    assert run("dispatch", "2 + 2?", *shared, "--dispatch", "prompt")[0] == 0
    given = examples(tmp_path / "examples.jsonl", chat=True)
    assert run("adapt", given, "--output", tmp_path / "MIX.json", *shared)[0] == 0
    assert run("export", "expert", *shared, "--format", "merged", "--output", tmp_path / "merged")[0] == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tiny_folder / name).read_bytes()
    for folder in (tmp_path / "expert", tmp_path / "merged"):
        assert not list(folder.glob("chat_template*"))


MUST_NOT_THINK = """{% if enable_thinking is not defined or enable_thinking %}{{ raise_exception('it thinks') }}
{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"""


def test_arguments_of_the_template_reach_every_prompt(
    run: Any, tiny_folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown_by(tiny_folder, MUST_NOT_THINK)
    assert "it thinks" in refused(run, "train", recipe, "--output", tmp_path / "expert")
    document = yaml.safe_load(recipe.read_text()) | {"chat_template_kwargs": {"enable_thinking": False}}
    recipe.write_text(yaml.safe_dump(document))
    code, _, err = run("train", recipe, "--output", tmp_path / "expert")
    assert code == 0, err
    assert "chat_template_kwargs:\n  enable_thinking: false" in (tmp_path / "expert" / "README.md").read_text()

    shared = ["--library", tmp_path / "library"]
    assert run("experts", "add", tmp_path / "expert", *shared)[0] == 0
    asked = ["generate", "2 + 2?", *shared, "--dispatch", "expert", "--max-new-tokens", 4]
    assert "it thinks" in refused(run, *asked)
    assert run(*asked, "--chat-template-kwargs", "enable_thinking", "False")[0] == 0
    assert "it thinks" in refused(run, *asked, "--chat-template-kwargs", "enable_thinking", "True")
    assert "does not know" in refused(run, *asked, "--chat-template-kwargs", "thinking", "False")


@pytest.mark.parametrize("objective", ["reinforce", "next_token"])
def test_training_looks_at_all_prompts_before_it_begins(
    run: Any, tiny_folder: Path, recipe: Path, tmp_path: Path, objective: str
) -> None:
    shown_by(tiny_folder, NO_SYSTEM)
    rows = examples(tmp_path / "rows.jsonl", chat=True)
    a_step = "prompts_per_step" if objective == "reinforce" else "sequences_per_step"
    document = f"""
model: {tiny_folder}
domain: {{kind: jsonl, name: sums, description: Sums., path: {rows}, validation_path: {rows}, test_path: {rows},
         judged_by: last_number}}
training: {{objective: {objective}, learning_rate: 0.1, steps: 1, micro_batch_size: 2, {a_step}: 2}}
"""
    recipe.write_text(document)
    line = refused(run, "train", recipe, "--output", tmp_path / "expert")
    assert "does not take prompt 4: System role not supported" in line
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("expert")]
