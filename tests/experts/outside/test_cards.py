"""Front matter that the hub indexes."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from experts.library import ExpertLibrary
from experts.outside.base_names import BUILT_IN, ORIGINAL
from experts.outside.cards import model_card, share_right
from experts.shipped import shipped_library

SHIPPED = ExpertLibrary.open(shipped_library(BUILT_IN) or Path("missing"))


@pytest.mark.parametrize("name", [*SHIPPED.names, "classifier"])
def test_the_cards_of_shipped_experts_are_indexed(name: str) -> None:
    text = (SHIPPED.folder / name / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert (card.data.library_name, card.data.base_model) == ("peft", ORIGINAL)
    assert card.data.license == "apache-2.0"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == (name, "test", "accuracy")
    assert f"{result.metric_value:.1%}" in text.split("| expert |")[1].split("\n")[0]


def test_a_base_that_is_no_model_of_the_hub_is_not_in_the_front_matter(tmp_path: Path) -> None:
    card = ModelCard(model_card("# x\n", str(tmp_path), ["svf"]))
    assert card.data.base_model is None
    assert card.data.tags == ["svf", "selfadapt"]
    assert card.text == "# x\n"


def test_a_data_set_of_the_hub_is_named_by_its_id() -> None:
    result = share_right("mathematics", "openai/gsm8k", 1 / 3)
    text = model_card("# x\n", "a/b", ["svf"], datasets=["openai/gsm8k"], model_name="x", eval_results=[result])
    card = ModelCard(text)
    assert card.data.datasets == ["openai/gsm8k"]
    (read,) = card.data.eval_results
    assert (read.dataset_type, read.dataset_name, read.metric_value) == ("openai/gsm8k", "mathematics", 0.3333)
