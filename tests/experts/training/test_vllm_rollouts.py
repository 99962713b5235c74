"""Samples that vLLM writes for a training are those of the expert that is trained, and as likely as it says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from experts.engine import NativeEngine
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.training.vllm_rollouts import VLLMRollouts, adapted, as_lora, check_rollouts
from selfadapt import load_base

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make test-vllm` has it"),
]
FITS: dict[str, Any] = {"sharded": False, "few_answers": False, "pictures": False, "drawing": ()}


def expert_on(base: Any, config: SVFConfig, spread: float) -> PeftModel:
    model = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapted(model.get_base_model()).values():
            layer.svf_z["default"].add_(spread * torch.randn(len(layer.svf_z["default"]), generator=generator))
    return model


def test_the_lora_of_a_step_is_the_expert(tiny_model: Any, tmp_path: Path) -> None:
    model = expert_on(tiny_model, SVFConfig(rank=8, target_modules=["q_proj", "down_proj"]), 0.5)
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    lora = as_lora(model)
    lora.write(tmp_path / "step")
    base = model.unload()
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, str(tmp_path / "step"))(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - plain).abs().max() > 0.1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_so() -> None:
    with pytest.raises(UserError, match="vLLM is not installed"):
        check_rollouts(SVFConfig(rank=8), **FITS)


class TestOnVLLM:
    pytestmark = needs_vllm

    @pytest.mark.parametrize(
        ("adapter", "changes", "line"),
        [
            (SVFConfig(), {}, "set adapt.rank"),
            (SVFConfig(rank=4096), {}, "experts of rank .* or less"),
            (LoraConfig(), {}, "SVF experts"),
            (SVFConfig(rank=8), {"few_answers": True}, "a fixed set of answers"),
            (SVFConfig(rank=8), {"pictures": True}, "neither pictures"),
            (SVFConfig(rank=8), {"sharded": True}, "one process"),
            (SVFConfig(rank=8), {"drawing": {"top_p"}}, "leave top_p out"),
        ],
    )
    def test_what_vllm_cannot_sample_is_refused(self, adapter: Any, changes: dict[str, Any], line: str) -> None:
        with pytest.raises(UserError, match=f"rollouts: vllm.*{line}.*native"):
            check_rollouts(adapter, **FITS | changes)

    def test_samples_are_as_likely_as_vllm_says(self, smollm2_folder: Path) -> None:
        base, tokenizer = load_base("smollm2-135m")
        config = SVFConfig(rank=16, target_modules=r".*\.mlp\.(gate|up|down)_proj")
        model = expert_on(base, config, 0.05)
        ids = tokenize(tokenizer, ["Name a fish.", "Add 3 and 4."])
        ends = {tokenizer.eos_token_id}
        rollouts = VLLMRollouts(
            model.get_base_model(), config, ends=ends, max_new_tokens=8, temperature=0.7, max_model_len=256
        )
        torch.manual_seed(0)
        sampled = rollouts.sample(model, ids, 3)
        torch.manual_seed(0)
        assert rollouts.sample(model, ids, 3) == sampled
        assert len({tuple(own.tokens) for own in sampled}) > 2
        engine = NativeEngine(model, tokenizer)
        for place, own in enumerate(sampled):
            prompt = ids[place // 3]
            with torch.no_grad():
                logits = engine.model(input_ids=torch.tensor([prompt + own.tokens])).logits[0, len(prompt) - 1 : -1]
            logps = (logits.float() / 0.7).log_softmax(1).gather(1, torch.tensor(own.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(own.logps), logps, atol=2e-3, rtol=0)
            assert not ends & {*own.tokens[:-1]}
        # Another step, another expert.
        with torch.no_grad():
            for layer in adapted(model.get_base_model()).values():
                layer.svf_z["default"].fill_(1.0)
        torch.manual_seed(0)
        assert rollouts.sample(model, ids, 3) != sampled
