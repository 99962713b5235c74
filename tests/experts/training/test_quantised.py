"""Training on a base of four or eight bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from experts.engine import NativeEngine
from experts.library import load_expert
from experts.mixture import Mixture
from experts.svf import SVFConfig, SVFLinear
from experts.training import expert
from experts.training.expert import HeldOut, train_expert
from experts.training.reinforce import Reinforce
from experts.training.run import Interrupted, Run
from experts.training.supervised import NextToken
from experts.training.trainer import LoadedBase
from selfadapt import load_base


@pytest.fixture
def train(tiny_folder: Path, letters: Any, tmp_path: Path) -> Any:
    """`train(name, options)` trains an expert of rank 4 on a fresh copy of the quantised tiny base."""

    def train(name: str, options: Any, quantization: str = "nf4", **kwargs: Any) -> Any:
        base = LoadedBase(*load_base(tiny_folder, quantization=quantization), str(tiny_folder))
        run = Run(tmp_path / name, {"training": "tiny"}, **kwargs)
        return train_expert(base, letters, SVFConfig(rank=4, task_type="CAUSAL_LM"), options, run, HeldOut(8))

    return train


def z_of(folder: Path) -> torch.Tensor:
    return torch.cat([z for _, z in sorted(load_file(folder / "adapter_model.safetensors").items())])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("objective", ["reinforce", "next_token"])
def test_an_expert_is_trained_and_loads(
    train: Any, options: Reinforce, tiny_folder: Path, quantization: str, objective: str
) -> None:
    supervised = NextToken(
        learning_rate=0.05, steps=4, sequences_per_step=6, max_new_tokens=3, validate_every=2, micro_batch_size=3
    )
    result = train("expert", options if objective == "reinforce" else supervised, quantization)
    z = z_of(result.folder)
    assert z.dtype == torch.float32
    moved = (z - 1).abs()
    assert (moved > 0).float().mean() > 0.9
    assert not torch.equal(z, z.to(torch.bfloat16).float())  # and was never rounded
    ids = torch.arange(3, 40)[None]
    base, _ = load_base(tiny_folder, quantization=quantization)
    with torch.no_grad():
        torch.testing.assert_close(load_expert(base, result.folder)(ids).logits, result.model.eval()(ids).logits)
        dense, _ = load_base(tiny_folder)
        load_expert(dense, result.folder)  # which is taken for the base that it is a rounding of


class Interrupt(TrainerCallback):
    """Presses Ctrl-C during the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.long
def test_a_run_that_was_interrupted_ends_in_the_same_expert(
    train: Any, options: Reinforce, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, make = train("whole", options), expert.make_trainer

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(Interrupt())
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(expert, "make_trainer", interrupted)
        with pytest.raises(Interrupted):
            train("parts", options)
    assert torch.equal(z_of(train("parts", options, resume=True).folder), z_of(whole.folder))


def test_a_vision_language_model_in_four_bits(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = seeing
    model.save_pretrained(tmp_path / "seeing")
    processor.save_pretrained(tmp_path / "seeing")
    base, processor = load_base(tmp_path / "seeing", quantization="nf4")
    adapted: Any = get_peft_model(base, SVFConfig(rank=4, task_type="CAUSAL_LM")).eval()
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, SVFLinear)}
    assert len(layers) == 14
    assert all("language_model" in name and layer.quantised for name, layer in layers.items())
    for layer in layers.values():
        layer.svf_z["default"].data.copy_(torch.linspace(0.2, 1.8, 4))
    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What colour?"}]}]
        for picture in (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green"))
    ]
    mixture = Mixture(("default",), torch.tensor([[1.0], [0.0], [0.5]]))
    engine = NativeEngine(adapted, processor)
    together = engine.generate(prompts, max_new_tokens=6, mixture=mixture)
    alone = [
        engine.generate([prompt], max_new_tokens=6, mixture=mixture.rows([row]))[0]
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert len(set(together)) == 3
