"""TRL's own trainers on a trained expert: their reference is the expert as it was, not the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from experts.svf import SVFConfig, SVFLinear

CHEAP = {"max_steps": 1, "logging_steps": 1, "report_to": "none", "bf16": False, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def trained(tiny_model: Any, tmp_path: Path) -> PeftModel:
    """An expert far from the base, loaded as a user does who trains it further."""
    model = get_peft_model(tiny_model, SVFConfig(rank=8, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVFLinear):
                layer.svf_z["default"].fill_(1.5)
    model.save_pretrained(tmp_path / "expert", save_embedding_layers=False)
    return PeftModel.from_pretrained(model.unload(), str(tmp_path / "expert"), is_trainable=True)


def vectors(model: Any, name: str) -> list[torch.Tensor]:
    return [layer.svf_z[name].detach().clone() for layer in model.modules() if isinstance(layer, SVFLinear)]


@pytest.mark.parametrize(("trainer", "config"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
def test_the_first_step_has_no_divergence(
    trainer: Any, config: Any, trained: PeftModel, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    arguments = config(
        str(tmp_path / "run"),
        beta=0.1,
        learning_rate=1e-2,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=4,
        **CHEAP,
    )
    run = trainer(
        trained,
        lambda completions, **_: [float(index) for index, _ in enumerate(completions)],
        arguments,
        Dataset.from_dict({"prompt": ["one", "two"]}),
        processing_class=tiny_tokenizer,
    )
    run.train()
    assert run.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert all((z == 1.5).all() for z in vectors(run.model, "ref"))
    assert not all((z == 1.5).all() for z in vectors(run.model, "default"))
    assert run.model.active_adapter == "default"


def test_preferences_begin_from_the_expert(trained: PeftModel, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pairs = Dataset.from_dict({"prompt": ["one"] * 2, "chosen": [" two"] * 2, "rejected": [" six"] * 2})
    arguments = DPOConfig(str(tmp_path / "run"), per_device_train_batch_size=2, **CHEAP)
    run = DPOTrainer(trained, args=arguments, train_dataset=pairs, processing_class=tiny_tokenizer)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: both alike under the reference


def test_another_adapter_of_the_same_configuration_begins_as_the_base(tiny_model: Any) -> None:
    config = SVFConfig(rank=4)
    model = get_peft_model(tiny_model, config)
    with torch.no_grad():
        for z in model.parameters():
            if z.requires_grad:
                z.fill_(1.5)
    model.add_adapter("second", config)
    assert all((z == 1).all() for z in vectors(model, "second"))
