"""Two passes on a tiny base with two experts: who answers, and that the answers are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from experts import ExpertLibrary, Mixture
from experts.engine import Chat, generate
from experts.errors import UserError
from experts.fingerprint import fingerprint
from experts.svf import SVFConfig
from selfadapt import SelfAdaptiveModel

PROMPTS = ["one", "two and a bit", "three", "four!"]


@pytest.fixture
def library(tiny_folder: Path, tmp_path: Path) -> ExpertLibrary:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    library = ExpertLibrary.create(tmp_path / "library", str(tiny_folder), fingerprint(base))
    for seed, (name, config) in enumerate({"a": SVFConfig(), "b": SVFConfig(rank=8)}.items()):
        config.base_fingerprint = library.fingerprint
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        base = model.unload()
        library.add(tmp_path / name)
    return library


def answers(library: ExpertLibrary, dispatch: str) -> list[str]:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch=dispatch)
    return [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]


class ByLength:
    """A dispatcher for the test: "a", "b", half of each, or the base, by the number of words."""

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        rows = {"one": [1.0, 0.0], "two and a bit": [0.0, 1.0], "three": [0.5, 0.5], "four!": [0.0, 0.0]}
        return Mixture(("a", "b"), torch.tensor([rows[str(prompt)] for prompt in prompts]))


def test_each_prompt_is_answered_by_its_own_mixture(library: ExpertLibrary, tmp_path: Path) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    got = model.generate(PROMPTS, max_new_tokens=8)
    assert [answer.mixture for answer in got] == [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {}]
    Mixture.of({"a": 0.5, "b": 0.5}).write(tmp_path / "MIX.json")
    wanted = [answers(library, dispatch) for dispatch in ("a", "b", str(tmp_path / "MIX.json"), "none")]
    assert [answer.text for answer in got] == [wanted[row][row] for row in range(4)]
    assert len({texts[0] for texts in wanted}) > 1  # the experts do differ
    assert all(answer.seconds.answer > 0 for answer in got)


def test_none_and_an_empty_library_are_the_base(library: ExpertLibrary, tiny_tokenizer: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(library.base, dtype=torch.float32)
    wanted = generate(base, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    assert answers(library, "none") == wanted
    empty = ExpertLibrary.create(library.folder.with_name("empty"), library.base, library.fingerprint)
    assert answers(empty, "none") == wanted


def test_mistakes_are_one_line(library: ExpertLibrary, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dispatcher or expert 'c'"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch="c")
    with pytest.raises(UserError, match="no such file"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch="MIX.json")
    Mixture.of({"nobody": 1.0}).write(tmp_path / "MIX.json")
    with pytest.raises(UserError, match="unknown expert 'nobody'"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch=str(tmp_path / "MIX.json"))
    model = SelfAdaptiveModel.from_pretrained(library=library)
    with pytest.raises(UserError, match="no prompt"):
        model.generate([])
    with pytest.raises(UserError, match="must be a list"):
        model.generate("hello")
    library.fingerprint = "another"
    with pytest.raises(UserError, match="fingerprint another"):
        SelfAdaptiveModel.from_pretrained(library=library)
