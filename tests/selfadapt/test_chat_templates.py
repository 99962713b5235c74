"""Bases that have no chat template read plain text; one that refuses what it is asked is one line, before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experts import ExpertLibrary
from selfadapt import SelfAdaptiveModel

NO_SYSTEM = """{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}{{ m['content'] }}{% endfor %}"""

USERS_ALONE = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


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
@pytest.mark.long
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
    assert "does not accept prompt 4: System role not supported" in line
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("expert")]


def test_the_system_speaks_before_every_prompt_or_is_refused(
    run: Any, library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch="a")
    system, user = ({"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "2 + 2?")))
    wanted = model.generate([[system, user]], max_new_tokens=8)[0].text
    assert wanted != model.generate(["2 + 2?"], max_new_tokens=8)[0].text
    assert model.generate(["2 + 2?"], max_new_tokens=8, system_prompt="Be brief.")[0].text == wanted
    assert "".join(model.stream("2 + 2?", max_new_tokens=8, system_prompt="Be brief.")) == wanted
    likelihood = model.loglikelihood(["2 + 2?"], ["4"], system_prompt="Be brief.")
    assert likelihood == model.loglikelihood([[system, user]], ["4"]) != model.loglikelihood(["2 + 2?"], ["4"])
    by_length = SelfAdaptiveModel.from_pretrained(library=library)
    assert by_length.dispatch(["2 + 2?"]).weights.equal(by_length.dispatch([[system, user]]).weights)

    asked = ["generate", "2 + 2?", "--library", library.folder, "--dispatch", "a", "--max-new-tokens", 8]
    assert run(*asked, "--system-prompt", "Be brief.")[1] == f"{wanted}\n"
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert run(*asked, "--system-prompt", "Be brief.")[1] == f"{wanted}\n[a 1.00]\n"
    for template, said in ((NO_SYSTEM, "System role not supported"), (USERS_ALONE, "leaves out what the system says")):
        shown_by(Path(library.base), template)
        assert run(*asked)[0] == 0
        assert said in refused(run, *asked, "--system-prompt", "Be brief.")


def test_an_evaluation_does_not_lose_the_systems_message(run: Any, library: ExpertLibrary, tmp_path: Path) -> None:
    """lm-eval leaves it out where a template refuses it, with a warning for every context."""
    shown_by(Path(library.base), NO_SYSTEM)
    examples(tmp_path / "rows.jsonl", chat=False)
    task = {"task": "sums", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    task |= {
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "metric_list": [{"metric": "acc"}],
    }
    task |= {"doc_to_text": "{{prompt}}", "doc_to_choice": ["1", "2"], "doc_to_target": 0}
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    asked = ["eval", "--tasks", "sums", "--include-path", tmp_path, "--model", library.base, "--apply-chat-template"]
    assert run(*asked)[0] == 0
    assert "leaves out what the system says in a question" in refused(run, *asked, "--system-instruction", "Add.")
