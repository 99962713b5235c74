"""The experts that come with the package: complete, made by the committed recipes, and better than the base."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.library import ExpertLibrary, load_expert
from experts.outside.errors import UserError
from experts.shipped import shipped_library
from experts.svf.fingerprint import fingerprint
from experts.text_to_lora import TextToAdapter
from experts.text_to_lora.reconstruction import hold_out
from experts.text_to_lora.tasks import read_descriptions
from experts.text_to_lora.writer import read_network
from experts.training.evaluation import Problems, held_out_scores
from experts.training.statistics import accuracy
from selfadapt import SelfAdaptiveModel
from selfadapt.recipes import find_recipe, read_recipe
from selfadapt.recipes.text_to_lora import find_recipe as find_t2l_recipe
from selfadapt.recipes.text_to_lora import read_recipe as read_t2l_recipe
from selfadapt.two_pass import find_library

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]
FOLDER = shipped_library("smollm2-135m") or Path("missing")
LIBRARY = ExpertLibrary.open(FOLDER)
NETWORK = FOLDER / "t2l"


def test_there_are_at_least_four_for_the_built_in_base(smollm2: Base) -> None:
    assert len(LIBRARY) >= 4
    assert LIBRARY.base == "smollm2-135m"
    assert LIBRARY.fingerprint == fingerprint(smollm2[0])
    LIBRARY.check_base(smollm2[0].half())  # a rounding


def test_they_are_found_by_the_base_whatever_it_is_called(
    smollm2: Base, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base, tokenizer = smollm2
    for each in (base.bfloat16(), tokenizer):
        each.save_pretrained(tmp_path / "a rounding of it")
    assert find_library(tmp_path / "a rounding of it", None).folder == FOLDER
    base.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
    base.save_pretrained(tmp_path / "another")
    for each in (tiny_model, tiny_tokenizer):
        each.save_pretrained(tmp_path / "of another shape")
    for other in ("another", "of another shape", "none"):
        with pytest.raises(UserError, match="no experts come with the base"):
            find_library(tmp_path / other, None)


def test_they_are_found_by_the_bases_name_before_it_is_loaded() -> None:
    found = shipped_library("Qwen/Qwen2.5-Coder-0.5B-Instruct")
    assert found is not None
    assert ExpertLibrary.open(found).base == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert shipped_library("nobody/nothing") is None


def test_a_library_that_is_given_and_empty_is_the_base(smollm2_folder: Path, tmp_path: Path) -> None:
    ExpertLibrary.create(tmp_path / "empty", LIBRARY.base, LIBRARY.fingerprint)
    model = SelfAdaptiveModel.from_pretrained("smollm2-135m", library=tmp_path / "empty")
    assert not model.engine.experts
    assert model.dispatch(["There are 6 boxes with 7 eggs in each. How many eggs are there?"]).is_base


@pytest.mark.parametrize("name", LIBRARY.names)
def test_each_is_complete_and_made_by_its_recipe(name: str) -> None:
    folder = LIBRARY.path(name)
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "training_log.jsonl", "curve.png"),
        *("prompt_embeddings.safetensors", "base_sketch.safetensors"),
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    config = LIBRARY.config(name)
    assert config.base_fingerprint == LIBRARY.fingerprint
    assert config.domain == name
    recipe = read_recipe(find_recipe(f"smollm2-135m/{name}"))
    assert config.description == recipe.domain.description
    in_card = re.search(r"```yaml\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert in_card is not None
    assert yaml.safe_load(in_card[1]) == recipe.to_dict()
    assert sum(len(z) for z in LIBRARY.z(name).values()) == 5760


def test_the_network_is_complete_and_made_by_its_recipe() -> None:
    files = {path.name: path.stat().st_size for path in NETWORK.iterdir()}
    assert set(files) == {
        *("network.json", "network.safetensors", "README.md", "training_log.jsonl"),
        *("descriptions.jsonl", "test_descriptions.jsonl"),
    }
    assert sum(files.values()) < 3_000_000
    in_card = re.search(r"```yaml\n(.*?)```", (NETWORK / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert in_card is not None
    assert yaml.safe_load(in_card[1]) == read_t2l_recipe(find_t2l_recipe("smollm2-135m/t2l/shipped")).to_dict()
    assert read_network(NETWORK).spec.fingerprint == LIBRARY.fingerprint
    learned, unseen = (
        {text for texts in read_descriptions(NETWORK / file).values() for text in texts}
        for file in ("descriptions.jsonl", "test_descriptions.jsonl")
    )
    assert not learned & unseen


@pytest.mark.parametrize("task", [*LIBRARY.names, "mathematics", "other"])
def test_the_network_writes_the_experts_back_and_the_base_for_everything_else(task: str) -> None:
    writer = TextToAdapter.from_pretrained(NETWORK)
    descriptions, _ = hold_out([read_descriptions(NETWORK / "descriptions.jsonl")[task]], 0.2)
    written = writer.write(descriptions[0])
    wanted = LIBRARY.z(task) if task in LIBRARY.names else {matrix: torch.ones(64) for matrix in written}
    away = torch.stack([(z - wanted[matrix]).square().sum(1) for matrix, z in written.items()]).sum(0).sqrt()  # type: ignore
    shortest = min(torch.cat([z - 1 for z in LIBRARY.z(name).values()]).norm() for name in LIBRARY.names)
    assert (away < 0.25 * shortest).float().mean() > 0.9


@pytest.mark.long
def test_prompts_are_answered_by_what_the_network_writes_from_them(smollm2_folder: Path) -> None:
    prompts = ["There are 6 boxes with 7 eggs in each. How many eggs are there in all?", "Write a poem."]
    model = SelfAdaptiveModel.from_pretrained("smollm2-135m", dispatch="t2l")
    groups, poem = model.generate(prompts, max_new_tokens=16)
    plain = SelfAdaptiveModel.from_pretrained("smollm2-135m", dispatch="none").generate(prompts, max_new_tokens=16)
    assert "42" in groups.text
    assert "42" not in plain[0].text
    assert poem.text == plain[1].text


@pytest.mark.long
def test_the_demos_expert_beats_the_base(smollm2: Base) -> None:
    compare_on_test_problems("stories", smollm2, n=48, points=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY.names)
def test_every_expert_beats_the_base(name: str, smollm2: Base) -> None:
    compare_on_test_problems(name, smollm2, n=256, points=0.0)


def compare_on_test_problems(name: str, smollm2: Base, n: int, points: float) -> None:
    base, tokenizer = smollm2
    recipe = read_recipe(find_recipe(f"smollm2-135m/{name}"))
    rows = recipe.domain.load("test")
    rows = rows.select(range(min(n, len(rows))))

    def share_right(model: PreTrainedModel | PeftModel) -> float:
        problems = Problems(recipe.domain, rows, recipe.training.max_new_tokens)
        return accuracy(held_out_scores(model, tokenizer, problems)).value

    before = share_right(base)  # before the expert is put into it
    assert share_right(load_expert(base, LIBRARY.path(name))) > before + points
