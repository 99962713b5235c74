"""A comparison of chosen methods, which keeps its scores as they come and goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from experts.outside.errors import UserError
from experts.text_to_lora import comparison
from experts.text_to_lora.baselines import NEEDS, prompt_methods, written_methods
from experts.text_to_lora.chosen_methods import split_names
from experts.text_to_lora.comparison import Comparison, compare_methods
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.evaluation import paired_estimates
from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.kept_scores import KeptScores
from experts.text_to_lora.network import SvfOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.tasks import Instance, Task, TaskData, Tasks
from experts.text_to_lora.writer import Base, TextToAdapter

CONTROL = "written, another task's description"


class Letters(TaskData):
    """Three test tasks, each of which wants one letter."""

    def load(self) -> Tasks:
        tasks = []
        for letter in "abc":
            instances = tuple(Instance(f"{letter}{i}", f"{i}", (letter,)) for i in range(4))
            tasks.append(Task(letter, "test", "Write.", instances, descriptions=(f"Write {letter}.",)))
        return Tasks([], [], tasks)


@pytest.fixture
def base(tiny_model: Any, tiny_tokenizer: Any) -> Base:
    return Base("tiny", lambda: tiny_model.config, lambda: (tiny_model, tiny_tokenizer))


@pytest.fixture
def network(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A network whose experts do something."""
    output, encoder = SvfOutput(rank=4), LastTokenEncoder(tiny_model, tiny_tokenizer)
    writer = TextToAdapter.untrained(
        output, read_matrices(tiny_model.config, output.target_modules), encoder, latent_size=16, head_size=8
    )
    for head in writer.network.heads:
        for parameter in head.parameters():
            parameter.data.normal_(std=0.1)
    writer.save_pretrained(tmp_path / "network")
    return tmp_path / "network"


@pytest.fixture
def asked(network: Path) -> Comparison:
    return Comparison(network, methods=["base", "written", CONTROL], instances=2, max_new_tokens=2)


def stop_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once so many tasks have been scored."""
    add, added = KeptScores.add, []

    def stopping(self: KeptScores[Any], *args: Any) -> None:
        add(self, *args)
        added.append(args)
        if len(added) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptScores, "add", stopping)


def test_names_are_those_of_the_methods(network: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    writer = TextToAdapter.for_base(network, tiny_model, tiny_tokenizer)
    style, tasks = PromptStyle(), Letters().load().test
    methods = [*prompt_methods(tiny_model, style), *written_methods(tiny_model, writer, tasks, style)]
    assert [method.name for method in methods] == [name for name, need in NEEDS.items() if need in (None, "network")]
    assert split_names(",".join(NEEDS), NEEDS) == [*NEEDS]  # some hold commas
    assert split_names(f" {CONTROL} ,base, x,", NEEDS) == [CONTROL, "base", "x", ""]


def test_only_what_is_chosen_is_scored_and_tested(asked: Comparison, base: Base) -> None:
    said: list[str] = []
    compared = compare_methods(replace(asked, methods=[CONTROL, "written"]), Letters(), base, said.append)
    assert said == [*compared.scores] == [*compared.estimates] == ["written", CONTROL]
    everything = compare_methods(replace(asked, methods=()), Letters(), base)
    assert {name: everything.scores[name] for name in said} == compared.scores
    assert [*everything.scores] == [name for name, need in NEEDS.items() if need in (None, "network")]
    assert compared.estimates == paired_estimates(compared.scores, "written")  # Holm's correction is for these two

    without = compare_methods(replace(asked, methods=["base", CONTROL]), Letters(), base)
    assert (without.reference, [*without.estimates]) == ("base", ["base", CONTROL])
    alone = compare_methods(replace(asked, methods=[CONTROL]), Letters(), base)
    assert alone.estimates[CONTROL]["loss_difference"].p == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["base", "oracle"]}, "no method 'oracle'; the methods are: base; description in the prompt; 3 ex"),
        ({"methods": ["multi-task adapter"]}, "'multi-task adapter' needs --multi-task"),
        ({"methods": ["written"], "network": None}, "'written' needs a network"),
        ({"oracles": Path("nowhere")}, "no such folder: nowhere"),
        ({"resume": True}, "give it as --output"),
    ],
)
def test_a_mistake_is_found_before_anything_is_read(asked: Comparison, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(asked, **changes)


def test_too_few_tasks_and_adapters_are_found_before_a_base_is_loaded(base: Base, tmp_path: Path) -> None:
    class One(Letters):
        def load(self) -> Tasks:
            return Tasks([], [], super().load().test[:1])

    def no_load() -> Any:
        raise AssertionError("nothing can be compared")

    (tmp_path / "a").mkdir()
    oracles = Comparison(oracles=tmp_path)
    for asked, data, message in [
        (Comparison(), One(), "has one test task; a comparison needs two or more"),
        (oracles, Letters(), r"holds no adapter for a: there is no a/adapter_config\.json"),
    ]:
        with pytest.raises(UserError, match=message):
            compare_methods(asked, data, replace(base, load=no_load))


def test_tasks_may_have_names_that_peft_takes_for_paths(base: Base, tiny_model: Any, tmp_path: Path) -> None:
    class Dotted(Letters):
        def load(self) -> Tasks:
            return Tasks([], [], [replace(task, name=f"v1.{task.name}") for task in super().load().test])

    for task in Dotted().load().test:
        lora = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        lora.save_pretrained(tmp_path / task.name)
        lora.unload()
    asked = Comparison(oracles=tmp_path, adapters=tmp_path, instances=1, max_new_tokens=1)
    scores = compare_methods(asked, Dotted(), base).scores
    losses = [[score.loss for score in own] for own in scores.values()]
    assert len(losses) == 6
    assert losses[0] != losses[-1] != losses[-2]


@pytest.mark.parametrize("scored", [1, 3, 7, 9])
def test_a_comparison_that_was_stopped_goes_on(
    scored: int, asked: Comparison, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare_methods(asked, Letters(), base)
    kept = replace(asked, output=tmp_path / "runs" / "scores.jsonl")
    assert kept.output is not None
    with monkeypatch.context() as patch:
        stop_after(scored, patch)
        with pytest.raises(UserError, match=r"stopped; .*scores.jsonl has the scores so far: resume"):
            compare_methods(kept, Letters(), base)
    lines = kept.output.read_text().splitlines()
    assert len(lines) == scored
    with pytest.raises(UserError, match="exists already; resume it"):
        compare_methods(kept, Letters(), base)

    evaluated: list[tuple[str, str]] = []
    evaluate = comparison.evaluate

    def watched(method: Any, tokenizer: Any, tasks: Any, **options: Any) -> Any:
        evaluated.extend((method.name, task.name) for task in tasks)
        return evaluate(method, tokenizer, tasks, **options)

    monkeypatch.setattr(comparison, "evaluate", watched)
    assert compare_methods(replace(kept, resume=True), Letters(), base) == whole
    assert evaluated == [(method, task) for method in asked.chosen for task in "abc"][scored:]
    assert kept.output.read_text().splitlines()[:scored] == lines
    assert [path.name for path in kept.output.parent.iterdir() if not path.name.startswith(".")] == ["scores.jsonl"]

    def no_load() -> Any:
        raise AssertionError("nothing is left to be scored")

    assert compare_methods(replace(kept, resume=True), Letters(), replace(base, load=no_load)) == whole


def test_methods_are_added_to_scores_that_are_there(asked: Comparison, base: Base, tmp_path: Path) -> None:
    kept = replace(asked, methods=["base"], output=tmp_path / "scores.jsonl", resume=True)
    compare_methods(kept, Letters(), base)
    path = tmp_path / "scores.jsonl"
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    added = compare_methods(replace(kept, methods=["written", "base"]), Letters(), base)
    assert added == compare_methods(replace(asked, methods=["base", "written"]), Letters(), base)
    assert len(path.read_text().splitlines()) == 6


def test_scores_with_other_settings_are_refused(asked: Comparison, base: Base, network: Path, tmp_path: Path) -> None:
    class Fewer(Letters):
        def load(self) -> Tasks:
            return Tasks([], [], super().load().test[:2])

    path = tmp_path / "scores.jsonl"
    kept = replace(asked, output=path, resume=True)
    compare_methods(kept, Letters(), base)
    before = path.read_bytes()
    for other, own_base, data, what in [
        (replace(kept, instances=3), base, Letters(), "tasks, instances"),
        (replace(kept, max_new_tokens=3), base, Letters(), "max_new_tokens"),
        (replace(kept, with_definition=True), base, Letters(), "with_definition"),
        (kept, replace(base, name="small"), Letters(), "model"),
        (kept, replace(base, options={"dtype": "bfloat16"}), Letters(), "dtype"),
        (kept, base, Fewer(), "tasks"),
    ]:
        with pytest.raises(UserError, match=rf"scores of 'base' with other settings than these \({what}\); choose"):
            compare_methods(other, data, own_base)
    network.rename(tmp_path / "elsewhere")  # the place says nothing
    compare_methods(replace(kept, network=tmp_path / "elsewhere"), Letters(), base)
    config = json.loads((tmp_path / "elsewhere" / "network.json").read_text())
    (tmp_path / "elsewhere" / "network.json").write_text(json.dumps({**config, "dropout": 0.5}))
    with pytest.raises(UserError, match=r"scores of 'written' with other settings than these \(network\)"):
        compare_methods(replace(kept, network=tmp_path / "elsewhere"), Letters(), base)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ['{"step": 1}', '{"method": "base", "task": "a", "settings": {}, "scores": [1]}'])
def test_a_line_that_holds_no_scores_is_named(line: str, asked: Comparison, base: Base, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"scores.jsonl:1 is not a line of scores: remove it"):
        compare_methods(replace(asked, output=path, resume=True), Letters(), base)
