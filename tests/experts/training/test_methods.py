"""Every method under every objective: one step, a folder, and plain PEFT reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.training.expert import HeldOut, TrainedExpert, train_expert
from experts.training.methods import IA3, METHODS, SVF, DoRA, LoRA, TinyLoRA
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.supervised import NextToken
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import make_trainer

NEXT_TOKEN = NextToken(learning_rate=0.05, steps=1, sequences_per_step=4, max_new_tokens=3, validation_size=4)


@pytest.fixture
def train(tiny_folder: Path, tiny_tokenizer: Any, letters: Any, tmp_path: Path) -> Any:
    """`train(method, options)` makes an adapter for a fresh copy of the tiny base."""

    def train(method: Any, options: Any) -> TrainedExpert:
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        loaded, run = LoadedBase(base, tiny_tokenizer, str(tiny_folder)), Run(tmp_path / "adapter", {})
        return train_expert(loaded, letters, method.config(), options, run, HeldOut(4))

    return train


@pytest.mark.parametrize("objective", ["reinforce", "next_token"])
@pytest.mark.parametrize("name", METHODS)
def test_it_takes_a_step_is_saved_and_loads_in_plain_peft(
    train: Any, options: Reinforce, tiny_folder: Path, tmp_path: Path, name: str, objective: str
) -> None:
    one_step = replace(options, steps=1, learning_rate=0.05) if objective == "reinforce" else NEXT_TOKEN
    result = train(METHODS[name](), one_step)
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        plain = base(ids).logits
        wanted = result.model.eval()(ids).logits
        loaded = PeftModel.from_pretrained(base, str(result.folder))
        assert not torch.allclose(wanted, plain, atol=1e-5)  # it has learned something
        torch.testing.assert_close(loaded(ids).logits, wanted)
    files = {path.name for path in result.folder.iterdir()}
    usual = {"adapter_config.json", "adapter_model.safetensors", "README.md", "training_log.jsonl", "curve.png"}
    beside = {"svf": {"base_sketch.safetensors"}, "lora": {"description.txt"}, "dora": {"description.txt"}}
    assert files == usual | beside.get(name, set())
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert f"{result.parameters:,}" in (result.folder / "README.md").read_text()


def test_sizes_are_those_of_the_formulas(tiny_folder: Path) -> None:
    def parameters(method: Any) -> int:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), method.config())
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    # Two layers, each with q, o 32 → 32, k, v 32 → 16, gate, up 32 → 48, down 48 → 32.
    shapes = [(32, 32), (32, 32), (16, 32), (16, 32), (48, 32), (48, 32), (32, 48)]
    assert parameters(SVF(rank=8)) == 2 * 7 * 8
    assert parameters(LoRA(rank=4)) == 2 * sum(4 * (m + n) for m, n in shapes)
    assert parameters(DoRA(rank=4)) == 2 * sum(4 * (m + n) + m for m, n in shapes)
    assert parameters(IA3()) == 2 * (16 + 16 + 48)
    assert parameters(TinyLoRA(u=5)) == 2 * 7 * 5


def test_the_seed_makes_the_adapter_repeatable(train: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(LoRA(rank=2), NEXT_TOKEN)
    weights = (first.folder / "adapter_model.safetensors").read_bytes()
    first.folder.rename(tmp_path / "first")
    torch.manual_seed(2)
    second = train(LoRA(rank=2), NEXT_TOKEN)
    assert (second.folder / "adapter_model.safetensors").read_bytes() == weights


def test_a_rival_is_no_expert_of_a_library(train: Any, tmp_path: Path) -> None:
    library = ExpertLibrary.create(tmp_path / "library", "tiny", "0" * 16)
    with pytest.raises(UserError, match="is a IA3 adapter, not an SVF expert"):
        library.add(train(IA3(), NEXT_TOKEN).folder)


def test_only_svf_has_a_sigmoid_parametrisation(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    sigmoid = replace(options, parametrization="sigmoid")
    with pytest.raises(UserError, match="which LORA does not have"):
        make_trainer(LoadedBase(tiny_model, tiny_tokenizer, "tiny"), letters, LoRA().config(), sigmoid, tmp_path)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoRA(target_modules=["q_proj", "gate_porj"]), "unknown target module 'gate_porj'; did you mean 'gate_proj'"),
        (IA3(["q_proj", "gate_porj"], []), "did you mean 'gate_proj'"),
        (TinyLoRA(target_modules=["x"]), "unknown target module 'x'"),
        (DoRA(target_modules="mlp"), "target_modules names nothing in the base: 'mlp'"),
        (LoRA(target_modules=[]), "target_modules names nothing"),
        (LoRA(target_modules=["mlp"]), "model.layers.0.mlp is a LlamaMLP, which LORA cannot adapt"),
        (IA3(["embed_tokens"], []), "model.embed_tokens is a Embedding, which IA3"),
    ],
)
def test_names_that_mean_nothing_in_the_base_are_refused(train: Any, tmp_path: Path, method: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(method, NEXT_TOKEN)
    assert not (tmp_path / "adapter.unfinished").exists()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (LoRA, {"rank": 0}),
        (DoRA, {"rank": -1}),
        (LoRA, {"alpha": float("nan")}),
        (LoRA, {"alpha": 0}),
        (LoRA, {"dropout": -0.1}),
        (LoRA, {"dropout": 1.0}),
        (LoRA, {"target_modules": "("}),
        (IA3, {"feedforward_modules": "("}),
        (TinyLoRA, {"rank": 0}),
        (TinyLoRA, {"u": 0}),
    ],
)
def test_options_that_no_training_can_use_are_refused(method: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        method(**options)
