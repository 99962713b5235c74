"""REINFORCE on a vision-language model: answers that are right only for who sees the picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from datasets import Dataset
from peft import get_peft_model
from PIL import Image
from transformers import ProcessorMixin

from experts import Expert, ExpertLibrary, Mixture
from experts.domains import text_of
from experts.domains.hub import Hub
from experts.engine import NativeEngine
from experts.expert import read_config
from experts.svf import SVFConfig, SVFLinear
from experts.training.expert import HeldOut, train_expert
from experts.training.log import Log
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.trainer import LoadedBase
from selfadapt import SelfAdaptiveModel, load_base
from selfadapt.recipes import read_recipe, train_recipe


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


@pytest.mark.long
def test_the_reward_rises_for_who_sees_the_picture(seeing: tuple[Any, Any], tmp_path: Path) -> None:
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
    base, run = LoadedBase(model, processor, "tiny"), Run(tmp_path / "colours", {})
    result = train_expert(base, Colours(), adapter, options, run, HeldOut(8))
    # The greedy answer follows from the colour alone: blind, it is right for one of the two colours or for none.
    assert set(result.expert_scores[::2]) == set(result.expert_scores[1::2]) == {1.0}
    assert sum(result.base_scores) <= 4
    rewards = [entry["reward"] for entry in Log(result.folder / "training_log.jsonl").entries() if "reward" in entry]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 1  # signed: blind, the mean is 0 at best
    assert len(Expert.read(result.folder).z) == 14


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
    together = NativeEngine(adapted, processor).generate(prompts, max_new_tokens=6, mixture=mixture)
    alone = [
        NativeEngine(adapted, processor).generate([prompt], max_new_tokens=6, mixture=mixture.rows([row]))[0]
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert len(set(together)) == 3
    (text_only,) = NativeEngine(adapted, processor).generate(["What colour?"], max_new_tokens=6)
    assert isinstance(text_only, str)


def test_from_a_folder_of_pictures_to_an_expert_by_recipe(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = seeing
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    for split, number in (("train", 16), ("validation", 4), ("test", 4)):
        lines = []
        for i in range(number):
            colour = ("red", "blue")[i % 2]
            solid(colour).save(tmp_path / f"{split}-{i}.png")
            lines.append({"image": f"{split}-{i}.png", "question": f"Colour {i}?", "answers": [colour] * 3})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    document = {
        "model": str(tmp_path / "base"),
        "domain": {"kind": "vqa", "name": "colours", "description": "Colours.", "source": str(tmp_path)},
        "adapt": {"rank": 8, "layers_to_transform": [1]},
        "training": {
            "learning_rate": 0.05,
            "steps": 2,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "max_new_tokens": 3,
            "wrong_reward": -0.1,
            "validate_every": 1,
        },
    }
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(document))
    recipe = read_recipe(tmp_path / "colours.yaml")
    base, its_processor = load_base(recipe.model)
    assert isinstance(its_processor, ProcessorMixin)
    result = train_recipe(recipe, LoadedBase(base, its_processor, recipe.model), recipe.run(tmp_path / "expert"))
    assert len(result.expert_scores) == 4
    assert {len(z) for z in Expert.read(result.folder).z.values()} == {8}

    library = ExpertLibrary.create(tmp_path / "library", recipe.model, read_config(result.folder).base_fingerprint)
    library.add(result.folder, "colours")
    adaptive = SelfAdaptiveModel.from_pretrained(library=library, dispatch="colours")
    parts = [{"type": "image", "image": solid("red")}, {"type": "text", "text": "Colour?"}]
    answers = adaptive.generate([[{"role": "user", "content": parts}], "And a question without one?"], max_new_tokens=3)
    assert [answer.mixture[0] for answer in answers] == [{"colours": 1.0}] * 2


def test_a_table_with_a_column_of_pictures_and_a_system_prompt_trains(
    seeing: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, processor = seeing
    rows = [{"prompt": "Colour?", "answer": c, "seen": solid(c)} for c in ("red", "blue") * 20]
    Dataset.from_list(rows).to_parquet(tmp_path / "colours.parquet")
    domain = Hub(
        **{"name": "colours", "description": "Colours.", "path": str(tmp_path / "colours.parquet")},
        **{"judged_by": "last_word", "image_column": "seen", "system_prompt": "Look."},
    )
    options = Reinforce(
        learning_rate=0.1, steps=1, prompts_per_step=2, samples_per_prompt=2, max_new_tokens=3, validation_size=2
    )
    base = LoadedBase(model, processor, "tiny")
    result = train_expert(base, domain, SVFConfig(task_type="CAUSAL_LM"), options, Run(tmp_path / "x", {}), HeldOut(2))
    assert len(result.expert_scores) == 2
