from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experts.outside.errors import UserError
from experts.training.methods import DoRA
from experts.training.reinforce import Reinforce
from experts.training.supervised import NextToken
from experts.training.trainer import trainer_arguments
from selfadapt.base_models import BaseOptions
from selfadapt.recipes import Recipe, configs_folder, find_recipe, override, read_recipe
from selfadapt.recipes.base import BaseBlock

MINIMAL = {
    "domain": {"kind": "reasoning_gym", "name": "sums", "description": "Sums.", "dataset": "chain_sum"},
    "training": {"learning_rate": 0.01, "steps": 2},
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def shipped() -> list[Path]:
    return sorted(path for path in configs_folder().glob("*/*.yaml") if path.parent.name != "experiments")


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    assert read_recipe(written(tmp_path, recipe.to_dict())) == recipe
    assert find_recipe(f"{path.parent.name}/{path.stem}") == path
    assert recipe.domain.description.endswith(".")


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert recipe.model == "smollm2-135m"
    assert recipe.adapt.config().target_modules == "all-linear"


def test_names_of_trl_and_peft_mean_the_same_recipe(tmp_path: Path) -> None:
    theirs = {
        "domain": MINIMAL["domain"],
        "adapt": {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 0.1,
            "max_steps": 3,
            "num_generations": 5,
            "beta": 0.2,
            "max_completion_length": 7,
        },
    }
    ours = {
        "domain": MINIMAL["domain"],
        "adapt": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
        "training": {"learning_rate": 0.1, "steps": 3, "samples_per_prompt": 5, "kl": 0.2, "max_new_tokens": 7},
    }
    recipe = read_recipe(written(tmp_path, theirs))
    assert recipe == read_recipe(written(tmp_path, ours))
    assert not {"max_steps", "beta", "num_generations"} & recipe.to_dict()["training"].keys()
    assert override(recipe, ["--max-steps", "9", "--r=2"], prog="x") == override(
        recipe, ["--steps", "9", "--rank=2"], prog="x"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapt": {"r": 4, "rank": 4}}, "adapt has both r and rank, two names for one thing"),
        ({"training": {"learning_rate": 1, "steps": 2, "max_steps": 2}}, "training has both max_steps and steps"),
        ({"output_dir": "out"}, "output_dir is not part of a recipe; give it to `selfadapt train` as --output-dir"),
        ({"training": {"learning_rate": 1, "steps": 2, "output_dir": "out"}}, "output_dir is not part of a recipe"),
    ],
)
def test_two_names_of_one_thing_and_a_folder_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(written(tmp_path, MINIMAL | change))
    assert "recipe.yaml" in str(caught.value)


def test_the_base_and_the_trainer_are_told_more_by_blocks_that_change_nothing_where_they_are_absent(
    tmp_path: Path,
) -> None:
    plain = read_recipe(written(tmp_path, MINIMAL))
    assert not {"base", "chat_template_kwargs"} & plain.to_dict().keys()
    assert "trainer" not in plain.to_dict()["training"]
    told = {"base": {"revision": "v1", "attn_implementation": "eager"}, "trainer": {"top_p": 0.9, "weight_decay": 0.1}}
    recipe = read_recipe(written(tmp_path, MINIMAL | told))
    assert recipe.base.options() == told["base"]
    assert recipe.training.trainer == told["trainer"]
    assert recipe.to_dict()["base"] == told["base"]
    assert read_recipe(written(tmp_path, recipe.to_dict())) == recipe
    got = override(recipe, ["--base.revision", "v2", "--trainer.top-p", "0.5"], prog="train")
    assert (got.base.revision, got.training.trainer["top_p"]) == ("v2", 0.5)
    with pytest.raises(UserError, match="trainer appears twice, at the top and in training"):
        read_recipe(written(tmp_path, {**recipe.to_dict(), "trainer": {}}))


def test_the_base_block_takes_what_load_base_takes_of_a_base() -> None:
    at_its_top = ("dtype", "chat_template_kwargs")
    hints = {*BaseOptions.__annotations__} - {*at_its_top, "device"}  # which every process has its own of
    assert [field.name for field in fields(BaseBlock)] == [
        name for name in BaseOptions.__annotations__ if name in hints
    ]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"top_pp": 0.9}, "unknown argument of RLOOConfig in trainer: 'top_pp'; did you mean 'top_p'"),
        ({"num_generations": 4}, "num_generations is not passed on to RLOOConfig: use training.samples_per_prompt"),
        ({"output_dir": "x"}, "output_dir is not passed on to RLOOConfig: `selfadapt train` has --output"),
        ({"vllm_mode": "server"}, "vllm_mode is not passed on"),
        ({"use_vllm": True}, "use_vllm is not passed on to RLOOConfig: use training.rollouts: vllm"),
        ({"vllm_gpu_memory_utilization": 0.4}, "is only for rollouts: vllm"),
        ({"top_p": "high"}, "trainer: top_p: .*number"),
        ({"top_p": 3.0}, "trainer: top_p must be at most 1"),
        ({"top_k": -1}, "trainer: top_k must be a whole number of 0 or more"),
        ({"min_p": 2.0}, "trainer: min_p must be at most 1"),
        ({"repetition_penalty": 0.0}, "trainer: repetition_penalty must be a positive number"),
        ({"generation_kwargs": {"max_new_tokens": 20}}, "max_new_tokens is not passed on: use training.max_new_tokens"),
        ({"generation_kwargs": {"temperature": 2.0}}, "temperature is not passed on: use training.temperature"),
        ({"generation_kwargs": {"do_sample": False}}, "do_sample is not passed on"),
        ({"generation_kwargs": {"num_return_sequences": 3}}, "use training.samples_per_prompt"),
        ({"generation_kwargs": {"foo": 1}}, "unknown argument of GenerationConfig in generation_kwargs: 'foo'"),
        ({"generation_kwargs": {"top_p": 3.0}}, "trainer: top_p must be at most 1"),
        ({"generation_kwargs": {"top_k": 1}, "top_k": 2}, "top_k is there twice"),
        ({"use_liger_kernel": True}, "needs liger-kernel, which is not installed: pip install liger-kernel"),
    ],
)
def test_what_is_no_business_of_the_trainer_block_is_one_line(tmp_path: Path, trainer: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_recipe(written(tmp_path, MINIMAL | {"trainer": trainer}))
    assert "\n" not in str(error.value)


def test_empty_blocks_are_absent_ones(tmp_path: Path) -> None:
    plain = read_recipe(written(tmp_path, MINIMAL))
    empty = dict.fromkeys(("trainer", "base", "adapt", "chat_template_kwargs"))
    assert read_recipe(written(tmp_path, MINIMAL | empty)) == plain
    with pytest.raises(UserError, match="domain must be a mapping"):
        read_recipe(written(tmp_path, MINIMAL | {"domain": None}))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("weight_decay", "it belongs in the trainer block"),
        ("per_device_train_batch_size", "use training.micro_batch_size"),
        ("save_steps", "every step is logged"),
    ],
)
def test_an_argument_of_the_trainer_is_shown_its_place(tmp_path: Path, name: str, instead: str) -> None:
    with pytest.raises(UserError, match=f"training.{name} is not a field here: {instead}"):
        read_recipe(written(tmp_path, MINIMAL | {"training": MINIMAL["training"] | {name: 1}}))


def test_every_argument_is_handed_on_or_refused() -> None:
    """Those that trainers here are told themselves are refused, so that none is given twice."""
    options = Reinforce(learning_rate=1, steps=1)
    told = {*trainer_arguments(options, (1, 1), torch.device("cpu"), Path())} | {"num_generations", "temperature"}
    for name in told:
        with pytest.raises(UserError, match=f"{name} is not passed on"):
            replace(options, trainer={name: None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainin": {}}, r"unknown field 'trainin'; did you mean 'training'"),
        (
            {"training": {"learning_rat": 1}},
            r"unknown field 'training.learning_rat'; did you mean 'training.learning_rate'",
        ),
        ({"training": {"learning_rate": "fast", "steps": 2}}, r"training.learning_rate: .*number"),
        ({"training": {"learning_rate": 0.1, "steps": 0}}, ": steps must be at least 1, not 0"),
        ({"training": {"steps": 2}}, "training.learning_rate"),
        ({"training": 3}, "training must be a mapping"),
        ({"domain": {"kind": "reasoning_gim"}}, "unknown domain 'reasoning_gim'; did you mean 'reasoning_gym'"),
        ({"domain": {}}, "domain needs a kind"),
        ({"training": {"objective": "next_tokem"}}, "unknown objective 'next_tokem'; did you mean 'next_token'"),
        ({"training": {"objective": "next_token", "kl": 1}}, "unknown field 'training.kl'"),
        ({"adapt": {"method": "lorra"}}, "unknown method 'lorra'; did you mean 'lora' or 'dora'"),
        ({"adapt": {"method": "ia3", "rank": 2}}, "unknown field 'adapt.rank'"),
        ({"adapt": {"method": "tinylora", "rank": 0}}, ": rank must be a whole number of 1 or more, not 0"),
        ({"training": {"learning_rate": 0.1, "steps": True}}, "training.steps: must be a number, not true"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_field(tmp_path: Path, change: dict, message: str) -> None:
    path = written(tmp_path, {**MINIMAL, **change})
    with pytest.raises(UserError, match=message) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("a: [", "just words", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"recipe\.yaml"):
            read_recipe(path)
    for name, kind in {"mine.csv": "hub", "mine.parquet": "hub", "mine.jsonl.gz": "jsonl", "MINE.TSV": "hub"}.items():
        (tmp_path / name).write_bytes(b"\x00question,answer\n")
        whose = "whose domain names the data: "
        named = (
            rf"{name} holds data, but a YAML file is needed, such as a recipe {whose}\{{kind: {kind}, path: .*{name}, "
        )
        with pytest.raises(UserError, match=named):
            read_recipe(tmp_path / name)
    (tmp_path / "of.csv.yaml").write_text(path.read_text())
    with pytest.raises(UserError, match=r"of\.csv\.yaml must be a mapping"):
        read_recipe(tmp_path / "of.csv.yaml")
    with pytest.raises(UserError, match=r"unknown recipe 'smollm2-135m/storys'; did you mean 'smollm2-135m/stories'"):
        find_recipe("smollm2-135m/storys")


def test_one_field_chooses_the_method_and_one_the_objective(tmp_path: Path) -> None:
    for name, peft_type in [
        ("svf", "SVF"),
        ("lora", "LORA"),
        ("dora", "LORA"),
        ("ia3", "IA3"),
        ("tinylora", "TINYLORA"),
    ]:
        training = {**MINIMAL["training"], "objective": "next_token"}
        recipe = read_recipe(written(tmp_path, {**MINIMAL, "training": training, "adapt": {"method": name}}))
        assert recipe.adapt.config().peft_type.value == peft_type
        assert isinstance(recipe.training, NextToken)
        assert read_recipe(written(tmp_path, recipe.to_dict())) == recipe
    dora = read_recipe(written(tmp_path, {**MINIMAL, "adapt": {"method": "dora"}}))
    assert dora.adapt.config().use_dora
    assert isinstance(dora.training, Reinforce)
    got = override(dora, ["--rank", "3", "--alpha", "5", "--steps", "9"], prog="train")
    assert (got.adapt, got.training.steps) == (DoRA(rank=3, alpha=5), 9)


def test_fields_are_overridden_from_the_command_line(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    args = "--learning-rate 0.5 --rank 8 --domain.seed 3 --model other --no-gradient-checkpointing"
    got = override(recipe, args.split(), prog="train")
    assert got == Recipe(
        domain=replace(recipe.domain, seed=3),
        training=replace(recipe.training, learning_rate=0.5),
        adapt=replace(recipe.adapt, rank=8),
        model="other",
    )


def test_two_names_of_one_thing_are_refused_on_the_command_line(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    for args in ("--steps 1 --max-steps 2", "--max_steps=2 --steps=1", "--r 1 --rank 2"):
        with pytest.raises(UserError, match=r"the command line has both --\S+ and --\S+, two names for one thing"):
            override(recipe, args.split(), prog="train")


def test_a_name_of_another_method_is_refused_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown field 'adapt\.lora_alpha'"):
        read_recipe(written(tmp_path, MINIMAL | {"adapt": {"lora_alpha": 4}}))


def test_what_a_recipe_does_not_use_is_not_in_its_settings(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert list(recipe.to_dict()) == ["domain", "training", "adapt", "model", "dtype", "test_size"]
    thinking = override(recipe, ["--chat-template-kwargs", "enable_thinking", "False"], prog="train")
    assert thinking.to_dict()["chat_template_kwargs"] == {"enable_thinking": False}
    assert read_recipe(written(tmp_path, thinking.to_dict())) == thinking
    with pytest.raises(UserError, match="chat_template_kwargs"):
        read_recipe(written(tmp_path, MINIMAL | {"chat_template_kwargs": {"words": ["a"]}}))


def fits_module() -> Any:
    spec = importlib.util.spec_from_file_location("fits", configs_folder().parent / "benchmarks" / "fits.py")
    assert spec is not None
    assert spec.loader is not None
    fits = importlib.util.module_from_spec(spec)
    sys.modules["fits"] = fits  # where dataclasses look for their own
    spec.loader.exec_module(fits)
    return fits


@pytest.mark.parametrize(("quantization", "card"), [("nf4", 12), ("int8", 16)])
def test_recipes_in_few_bits_say_what_the_arithmetic_gives(quantization: str, card: int) -> None:
    fits, path = fits_module(), find_recipe(f"llama-3.1-8b-instruct/gsm8k-{quantization}")
    recipe, header = read_recipe(path), path.read_text()
    assert recipe.base.quantization == quantization
    step = fits.Step(fits.TOKENS["gsm8k"], recipe.training.micro_batch_size, recipe.training.gradient_checkpointing)
    own = fits.needs(fits.BASES["Llama-3.1-8B-Instruct"], recipe.adapt.rank, step, quantization=quantization)
    sampled = own.sequences(card * 1e9)
    assert f" {own.base / 1e9:.1f} and the factors of rank 64 {own.factors / 1e9:.1f} stay" in header
    assert f"On {card} GB a step's 128 answers are sampled {sampled} at a time" in header
    assert f"peak {(own.stays + sampled * own.cache) / 1e9:.1f}; a micro-batch" in header
    assert f"takes {own.backward / 1e9:.1f}, peak {(own.stays + own.backward) / 1e9:.1f}" in header
    assert own.stays + max(own.backward, sampled * own.cache) < (card - 1) * 1e9


def test_recipes_that_fit_a_card_say_what_the_arithmetic_gives() -> None:
    """Their headers, and the settings for 24 GB."""
    fits, found = fits_module(), 0
    for folder, name in [("qwen3-4b", "Qwen3-4B"), ("llama-3.1-8b-instruct", "Llama-3.1-8B-Instruct")]:
        for domain, tokens in fits.TOKENS.items():
            path = find_recipe(f"{folder}/{domain}")
            recipe, header = read_recipe(path), path.read_text()
            own = fits.needs(fits.BASES[name], 64, fits.Step(tokens, recipe.training.micro_batch_size, True))
            assert recipe.training.gradient_checkpointing
            assert (
                f"the base in bfloat16 {own.base / 1e9:.1f} and the factors of rank 64 {own.factors / 1e9:.1f}"
                in header
            )
            assert f"sampled {own.sequences(24e9)} at a time" in header
            assert f"takes {own.backward / 1e9:.1f}, peak {(own.stays + own.backward) / 1e9:.1f}" in header
            assert own.stays + max(own.backward, own.sequences(24e9) * own.cache) < 24e9
            found += 1
    assert found == 6
