"""Experts added and transferred by name, in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from experts import Expert
from experts.library import ExpertLibrary, UnknownBase
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.svf.fingerprint import fingerprint
from selfadapt.named_experts import add_expert, transfer_expert


@pytest.fixture
def expert(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> Path:
    z = {f"model.layers.{i}.mlp.up_proj": torch.linspace(0.5, 1.5, 8) for i in range(2)}
    Expert(z, str(tiny_folder), fingerprint(tiny_model), "Sums.").write(tmp_path / "sums")
    return tmp_path / "sums"


def test_the_first_expert_makes_the_library(expert: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert add_expert(expert, tmp_path / "library") == "sums"
    assert add_expert(expert, tmp_path / "library", "again") == "again"
    library = ExpertLibrary.open(tmp_path / "library")
    assert (library.names, library.base) == (["sums", "again"], str(tiny_folder))
    figures = library.figures("again")
    assert (figures.parameters, figures.description) == (16, "Sums.")
    assert {(each.r, each.min, each.max) for each in figures.matrices.values()} == {(8, 0.5, 1.5)}
    with pytest.raises(UserError, match="has an expert 'sums' already"):
        add_expert(expert, tmp_path / "library")


def test_a_library_that_another_program_makes_meanwhile_gets_both(
    expert: Path, tiny_folder: Path, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ExpertLibrary.create

    def slow(*args: Any) -> ExpertLibrary:
        monkeypatch.undo()
        create(tmp_path / "library", str(tiny_folder), fingerprint(tiny_model)).add(expert, "letters")
        return create(*args)

    monkeypatch.setattr(ExpertLibrary, "create", slow)
    assert add_expert(expert, tmp_path / "library") == "sums"
    assert ExpertLibrary.open(tmp_path / "library").names == ["letters", "sums"]


def test_an_expert_that_does_not_say_its_base_is_added_to_the_one_named(
    tiny_model: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    get_peft_model(tiny_model, SVFConfig(rank=4)).save_pretrained(str(tmp_path / "own"), save_embedding_layers=False)
    with pytest.raises(UnknownBase, match=r"own does not say which base it was trained on; name that base$"):
        add_expert(tmp_path / "own", tmp_path / "library")
    with pytest.raises(UserError, match="cannot name an expert"):
        add_expert(tmp_path / "own", tmp_path / "library", "base", model=str(tiny_folder))
    assert not (tmp_path / "library").exists()
    add_expert(tmp_path / "own", tmp_path / "library", model=str(tiny_folder))
    assert Expert.read(tmp_path / "library" / "own").base == str(tiny_folder)


def test_an_expert_goes_to_a_base_of_the_same_shapes(
    expert: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    tiny_model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    moved = transfer_expert(str(expert), str(tmp_path / "other"), compare=True)
    assert moved.origin == Expert.read(expert).fingerprint != moved.expert.fingerprint
    assert [one.matrix for one in moved.comparisons] == [*moved.expert.z]
    assert transfer_expert(str(expert), str(tmp_path / "other")).comparisons == []
    shuffled = transfer_expert(str(expert), str(tmp_path / "other"), shuffled=0).expert
    assert all(sorted(z.tolist()) == sorted(moved.expert.z[matrix].tolist()) for matrix, z in shuffled.z.items())

    replace(Expert.read(expert), base=None, fingerprint=None, sketch=None).write(tmp_path / "unmarked")
    with pytest.raises(UnknownBase, match="does not say which base"):
        transfer_expert(str(tmp_path / "unmarked"), str(tmp_path / "other"))
