"""REINFORCE on a vision-language model: answers that are right only for who sees the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import get_peft_model
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experts import Expert, Mixture
from experts.domains import text_of
from experts.engine import generate
from experts.svf import SVFConfig, SVFLinear
from experts.training.reinforce import Reinforce, make_trainer
from experts.training.run import train_expert

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def solid(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


@dataclass(frozen=True)
class Colours:
    """Write letters of the first half of the alphabet for a red picture, of the second for a blue one."""

    name: str = "colours"
    description: str = "Say what colour a picture has."

    def load(self, split: str) -> Dataset:
        rows = [
            {
                "id": f"{split}-{i}",
                "prompt": [{"role": "user", "content": "?"}],
                "image": solid(("red", "blue")[i % 2]),
                "answer": str(i % 2),
            }
            for i in range(32)
        ]
        return Dataset.from_list(rows)

    def reward(self, completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        return [
            sum((ord(letter) < 80) == (right == "1") for letter in text) / max(len(text), 1)
            for text, right in zip(texts, answer, strict=True)
        ]


@pytest.fixture
def seeing(tiny_tokenizer: Any) -> tuple[Any, Any]:
    """A tiny random LLaVA-NeXT and its processor."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer._tokenizer, **tiny_tokenizer.special_tokens_map)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 8]]
    )
    processor = transformers.LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = transformers.LlamaConfig(
        **SMALL, **ends, vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.2
    )
    config = transformers.LlavaNextConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=8, patch_size=4, initializer_range=0.2),
        image_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(10)  # a picture speaks as loud as a word
    model.generation_config.update(pad_token_id=0, eos_token_id=2)
    return model, processor


def test_a_run_validates_and_scores_with_the_pictures(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = seeing
    options = Reinforce(
        learning_rate=0.1,
        steps=40,
        prompts_per_step=16,
        max_new_tokens=1,
        micro_batch_size=64,
        validate_every=20,
        validation_size=8,
    )
    adapter = SVFConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    result = train_expert(
        model, processor, Colours(), adapter, options, tmp_path / "colours", base_name="tiny", recipe={}, test_size=8
    )
    # The greedy answer follows from the colour alone: blind, it is right for one of the two colours or for none.
    assert set(result.expert_scores[::2]) == set(result.expert_scores[1::2]) == {1.0}
    assert sum(result.base_scores) <= 4
    expert = Expert.read(tmp_path / "colours")
    assert len(expert.z) == 14


def test_pictures_in_a_batch_are_answered_under_their_own_mixtures(seeing: tuple[Any, Any]) -> None:
    model, processor = seeing
    adapted = get_peft_model(model, SVFConfig(task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, SVFLinear):
                layer.svf_z["default"].copy_(torch.linspace(0.2, 1.8, len(layer.svf_z["default"])))
    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for picture, text in zip(map(solid, ("red", "blue", "green")), ("?", "What colour?", "Say it."), strict=True)
    ]
    mixture = Mixture(("default",), torch.tensor([[1.0], [0.0], [0.5]]))
    together = generate(adapted, processor, prompts, max_new_tokens=6, mixture=mixture)
    alone = [
        generate(adapted, processor, [prompt], max_new_tokens=6, mixture=mixture.rows([row]))[0]
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert len(set(together)) == 3
    (text_only,) = generate(adapted, processor, ["What colour?"], max_new_tokens=6)
    assert isinstance(text_only, str)


def test_the_reward_rises_for_who_sees_the_picture(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = seeing
    options = Reinforce(
        learning_rate=0.1, steps=40, prompts_per_step=16, max_new_tokens=2, reward="raw", micro_batch_size=64
    )
    adapter = SVFConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(model, processor, Colours(), adapter, options, tmp_path, [])
    trainer.args.save_strategy = "no"
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    # Whatever is written without a look at the picture earns a half in the mean; a standard error is 0.02.
    assert sum(rewards[-10:]) / 10 > 0.6
    adapted = [name for name, module in trainer.model.named_modules() if isinstance(module, SVFLinear)]
    assert len(adapted) == 14
    assert all("language_model" in name for name in adapted)
