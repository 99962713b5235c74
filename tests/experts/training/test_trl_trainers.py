"""TRL's own trainers on a trained expert: their reference is the expert as it was, not the base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
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


def chats(texts: list[str], role: str = "user") -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": text}] for text in texts]


def from_the_base(kind: str, model: Any, tokenizer: Any, folder: Path, rank: int | None) -> Any:
    """A trainer of TRL's that is given the base and `peft_config`."""
    numbers = [str(number) for number in range(16)]
    rows = {"prompt": chats(numbers)}
    if kind == "SFT":
        rows["completion"] = chats(["aaa"] * 16, "assistant")
    if kind == "DPO":
        rows |= {"chosen": chats(["aaa"] * 16, "assistant"), "rejected": chats(["zzz"] * 16, "assistant")}
    sampled = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1} if kind in ("GRPO", "RLOO") else {}
    fused = {"learning_rate": 1e-2, "optim": "adamw_torch_fused", "save_steps": 2, "per_device_train_batch_size": 4}
    args = getattr(trl, f"{kind}Config")(str(folder), **{**CHEAP, "max_steps": 4}, **fused, **sampled)
    rewards = {"reward_funcs": lambda completions, **_: [float(i) for i, _ in enumerate(completions)]}
    return getattr(trl, f"{kind}Trainer")(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        peft_config=SVFConfig(rank=rank, task_type="CAUSAL_LM"),
        **(rewards if sampled else {}),
    )


@pytest.mark.parametrize("rank", [8, None])
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO", "RLOO"])
def test_a_trainer_that_is_given_the_base_trains_resumes_and_saves(
    kind: str, rank: int | None, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = [copy.deepcopy(tiny_model) for _ in range(3)]
    run = from_the_base(kind, base[0], tiny_tokenizer, tmp_path / "run", rank)
    run.train()
    z = vectors(run.model, "default")
    assert any((each != 1).any() for each in z)
    first = run.state.log_history[0]
    if kind == "DPO":
        assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    if kind in ("GRPO", "RLOO"):
        assert first["kl"] == pytest.approx(0, abs=1e-5)
    # What is merged for answers is what was trained last, and the base is as it was.
    prompt = tiny_tokenizer("What is 1 + 1?", return_tensors="pt")["input_ids"]
    run.save_model(str(tmp_path / "expert"))
    loaded = PeftModel.from_pretrained(base[1], str(tmp_path / "expert")).eval()
    with torch.no_grad():
        assert torch.equal(run.model.eval()(prompt).logits, loaded(prompt).logits)
        with run.model.disable_adapter(), loaded.disable_adapter():
            assert torch.equal(run.model(prompt).logits, tiny_model(prompt).logits)
    again = from_the_base(kind, base[2], tiny_tokenizer, tmp_path / "run", rank)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(map(torch.equal, vectors(again.model, "default"), z))
