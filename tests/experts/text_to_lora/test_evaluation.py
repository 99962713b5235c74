"""The comparison: scores that mean what they say, intervals whose units are tasks, rivals that are what they claim."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from experts.engine import NativeEngine
from experts.outside.errors import UserError
from experts.text_to_lora.adapters import TaskAdapters, train_adapters
from experts.text_to_lora.baselines import (
    adapter_methods,
    farthest,
    nearest,
    prompt_methods,
    random_text,
    written_methods,
)
from experts.text_to_lora.evaluation import Method, Score, evaluate, paired_estimates, rouge_l
from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.reconstruction import read_targets
from experts.text_to_lora.tasks import Instance, Task, Tasks
from experts.text_to_lora.writer import Base
from experts.training.statistics import over_tasks

STYLE = PromptStyle(with_definition=False)


def task(name: str, answer: str, instances: int = 6) -> Task:
    return Task(
        name,
        "test",
        f"Write {answer}.",
        tuple(Instance(f"{name}{i}", f"input {i}", (answer,)) for i in range(instances)),
        (("given", answer), ("also given", answer)),
        (f"Always write {answer}.",),
    )


TASKS = [task("a", "aaa"), task("b", "bbb")]


def test_scores_are_those_of_the_engine(tiny_model: Any, tiny_tokenizer: Any) -> None:
    method = Method("base", STYLE.chat, lambda: nullcontext(tiny_model))
    scores = evaluate(method, tiny_tokenizer, TASKS, instances=3, max_new_tokens=4, batch_size=2)
    assert [(s.task, s.id) for s in scores] == [(t.name, f"{t.name}{i}") for t in TASKS for i in range(3)]
    prompts = [f"input {i}" for i in range(3)]
    total = NativeEngine(tiny_model, tiny_tokenizer).loglikelihood(prompts, ["aaa<|im_end|>"] * 3)
    torch.testing.assert_close(torch.tensor([s.loss for s in scores[:3]]), -total / 4, atol=1e-4, rtol=1e-4)
    answers = NativeEngine(tiny_model, tiny_tokenizer).generate(prompts, max_new_tokens=4)
    assert [s.rouge for s in scores[:3]] == [rouge_l(answer, ["aaa"]) for answer in answers]


def test_other_tasks_are_the_least_alike_and_the_most_alike(encoder: Any) -> None:
    tasks = [task(str(b), "a" * (12 - b) + "b" * b) for b in (0, 4, 8)] + [task("z", "z" * 12)]
    assert farthest(tasks, encoder) == [3, 3, 3, 2]
    kinds = [replace(own, category=category) for own, category in zip(tasks, "pqrp", strict=True)]
    assert farthest(kinds, encoder) == [2, 3, 3, 2]
    assert farthest([replace(own, category="p") for own in tasks], encoder) == [3, 3, 3, 2]  # better than none
    assert farthest(tasks[:1], encoder) == nearest(tasks[:1], encoder) == [0]
    assert nearest(tasks, encoder)[::2] == [1, 1]
    assert nearest(kinds, encoder)[::3] == [3, 0]  # of the same category, however unlike


def test_rouge_takes_the_nearest_reference() -> None:
    assert rouge_l("the cats sat", ["a dog", "the cat sat"]) == 100
    assert rouge_l("the cat", ["the cat sat down"]) == pytest.approx(100 * 2 / 3)
    assert rouge_l("", ["x"]) == 0


def test_tasks_are_the_units_of_the_interval() -> None:
    few = over_tasks({"a": [0.0] * 100, "b": [1.0] * 100})
    assert (few.mean, few.low, few.high) == (0.5, 0.0, 1.0)  # 200 instances, but two tasks
    assert over_tasks({"a": [0.0, 1.0], "b": [1.0]}).mean == 0.75  # a task counts once, however long
    assert over_tasks({"a": [0.3], "b": [0.3]}).low == pytest.approx(0.3)
    many = over_tasks({str(i): [i / 100] for i in range(101)})
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.2915 / 101**0.5, rel=0.05)


def test_differences_are_paired() -> None:
    hard = {"a": 3.0, "b": 1.0, "c": 2.0}
    scores = {
        "written": [Score(name, "0", loss, 50.0) for name, loss in hard.items()],
        "base": [Score(name, "0", loss + 0.25, 40.0) for name, loss in hard.items()],
    }
    table = paired_estimates(scores, "written")
    assert table["base"]["loss_difference"].low == pytest.approx(0.25)
    assert table["base"]["loss_difference"].high == pytest.approx(0.25)
    assert table["base"]["rouge_difference"].mean == -10
    assert table["base"]["loss"].high - table["base"]["loss"].low > 0.5
    assert table["base"]["loss_difference"].p == table["base"]["rouge_difference"].p == 0.25  # 2 of 8 sign patterns
    assert table["written"]["loss_difference"].mean == 0


def test_prompts_say_what_their_names_say(tiny_model: Any) -> None:
    base, described, shown = prompt_methods(tiny_model, STYLE, shots=2)
    instance = TASKS[0].instances[0]
    assert [m["content"] for m in base.chat(TASKS[0], instance)] == ["input 0"]
    assert [m["content"] for m in described.chat(TASKS[0], instance)] == ["Always write aaa.\n\ninput 0"]
    assert [m["content"] for m in shown.chat(TASKS[0], instance)] == ["given", "aaa", "also given", "aaa", "input 0"]
    with_definition = prompt_methods(tiny_model, replace(STYLE, with_definition=True))[0]
    assert with_definition.chat(TASKS[0], instance)[0]["content"] == "Write aaa.\n\ninput 0"


@pytest.mark.parametrize("output", [LoraOutput(), SvfOutput(rank=8)], ids=str)
def test_controls_differ_from_the_description_only_in_what_they_are_written_from(
    output: Any, make_writer: Any, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    writer = make_writer(output, trained=True)
    right, other, similar, text, vector = written_methods(tiny_model, writer, TASKS, STYLE)
    scores = {
        method.name: evaluate(method, tiny_tokenizer, TASKS, instances=2, max_new_tokens=1)
        for method in (right, other, similar, text, vector)
    }
    assert scores[other.name] == scores[similar.name]  # there are only two tasks
    assert len({tuple(score.loss for score in own) for own in scores.values()}) == 4
    swapped = [replace(a, descriptions=b.descriptions) for a, b in zip(TASKS, TASKS[::-1], strict=True)]
    right = written_methods(tiny_model, writer, swapped, STYLE)[0]
    assert evaluate(right, tiny_tokenizer, swapped, instances=2, max_new_tokens=1) == scores[other.name]
    assert evaluate(prompt_methods(tiny_model, STYLE)[0], tiny_tokenizer, TASKS, instances=2, max_new_tokens=1)


def test_random_text_is_a_function_of_its_seed() -> None:
    assert random_text(1) == random_text(1) != random_text(2)
    assert len(random_text(1).split()) == 12


GIVEN = Tasks(TASKS, [], [])


def tiny_base(model: Any, tokenizer: Any) -> Base:
    return Base("tiny", lambda: model.config, lambda: (model, tokenizer))


OPTIONS = TaskAdapters(steps=30, learning_rate=0.02, leave_out=2, instances_per_step=4, prompt=STYLE)


@pytest.mark.parametrize("output", [LoraOutput(), SvfOutput(rank=16)], ids=str)
def test_adapters_of_tasks_know_them_and_leave_the_base_alone(
    output: Any, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    base = tiny_base(tiny_model, tiny_tokenizer)
    train = lambda: train_adapters(base, GIVEN, output, OPTIONS, tmp_path / "adapters")  # noqa: E731
    paths = train()
    assert [path.name for path in paths] == ["a", "b"]
    after = tiny_model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not list((tmp_path / "adapters").glob(".*"))

    targets = read_targets(tmp_path / "adapters")  # what reconstruction learns from
    assert targets.names == ["a", "b"]
    if isinstance(output, SvfOutput):
        assert targets.descriptions == ["Always write aaa.", "Always write bbb."]
        assert targets.fingerprint is not None
    else:
        starts = [load_file(path / "adapter_model.safetensors") for path in paths]
        key = next(key for key in starts[0] if "lora_A" in key)
        assert (starts[0][key] - starts[1][key]).abs().mean() < starts[0][key].abs().mean()  # one beginning

    (oracle,) = adapter_methods(tiny_model, STYLE, oracles=tmp_path / "adapters")
    known = evaluate(oracle, tiny_tokenizer, TASKS, instances=2, max_new_tokens=3)
    plain = evaluate(prompt_methods(tiny_model, STYLE)[0], tiny_tokenizer, TASKS, instances=2, max_new_tokens=3)
    assert all(own.loss < other.loss - 1 for own, other in zip(known, plain, strict=True))
    if isinstance(output, SvfOutput):
        with pytest.raises(UserError, match="adapters other than LoRAs"):
            adapter_methods(tiny_model, STYLE, adapters=tmp_path / "adapters")
    stamp = (paths[0] / "adapter_model.safetensors").stat().st_mtime_ns
    train()  # nothing is trained twice
    assert (paths[0] / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_an_adapter_that_is_none_is_said_before_anything_is_evaluated(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a PEFT adapter"):
        adapter_methods(tiny_model, STYLE, multi_task=tmp_path)


def test_an_adapter_of_another_base_is_one_line(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    other = LlamaForCausalLM(LlamaConfig(**{**tiny_model.config.to_dict(), "hidden_size": 64}))
    with pytest.raises(UserError, match="lora cannot be loaded onto this base") as error:
        adapter_methods(other, STYLE, multi_task=tmp_path / "lora")
    assert "\n" not in str(error.value)


def test_an_expert_of_another_base_is_refused_though_it_fits(tiny_model: Any, library: Any, tmp_path: Path) -> None:
    adapter_methods(tiny_model, STYLE, oracles=library.path("a").parent)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.normal_()
    with pytest.raises(UserError, match=r"the expert in .* belongs to a base with fingerprint"):
        adapter_methods(tiny_model, STYLE, multi_task=library.path("a"))


def test_baselines_among_trained_adapters(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = tiny_base(tiny_model, tiny_tokenizer)
    train_adapters(base, GIVEN, LoraOutput(), OPTIONS, tmp_path / "each")
    one = replace(OPTIONS, one_for_all=True)
    train_adapters(base, GIVEN, LoraOutput(), one, tmp_path / "all")
    methods = adapter_methods(tiny_model, STYLE, adapters=tmp_path / "each", multi_task=tmp_path / "all")
    assert [m.name for m in methods] == ["average of LoRAs", "Arrow routing of LoRAs", "multi-task adapter"]
    ids = torch.arange(3, 20)[None]
    before = tiny_model(ids).logits
    outputs = {}
    for method in methods:
        with method.model() as model, torch.no_grad():
            outputs[method.name] = model(ids).logits
        assert torch.equal(tiny_model(ids).logits, before)
    assert all(not torch.allclose(logits, before) for logits in outputs.values())

    # The average of the weight differences, not the product of averaged factors.
    scaling = LoraOutput().scaling
    matrix = "model.layers.1.self_attn.v_proj"
    difference = torch.zeros_like(tiny_model.get_submodule(matrix).weight)
    for name in ("a", "b"):
        tensors = load_file(tmp_path / "each" / name / "adapter_model.safetensors")
        prefix = f"base_model.model.{matrix}"
        difference += scaling / 2 * tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
    with methods[0].model() as model:
        assert isinstance(model, PeftModel)
        found = model.get_submodule(f"base_model.model.{matrix}").get_delta_weight("average")  # type: ignore[operator]
    torch.testing.assert_close(found, difference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"), [({"leave_out": 6}, "a has 6 instances"), ({"split": "test"}, "no test tasks")]
)
def test_tasks_without_enough_instances_are_named(
    change: dict[str, Any], message: str, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    options, base = replace(OPTIONS, **change), tiny_base(tiny_model, tiny_tokenizer)
    with pytest.raises(UserError, match=message):
        train_adapters(base, GIVEN, LoraOutput(), options, tmp_path / "x")
