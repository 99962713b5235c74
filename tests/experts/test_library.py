"""Experts on disk: what is refused, and that nothing is lost by a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from experts.errors import UserError
from experts.evaluation import Accuracy
from experts.fingerprint import fingerprint
from experts.library import ExpertLibrary, load_expert, write_expert
from experts.model_card import Card
from experts.svf import SVFConfig, SVFLinear


def make_expert(folder: Path, base: Any, name: str = "letters") -> Path:
    model = get_peft_model(base, SVFConfig(rank=4))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    card = Card(
        name=name,
        base="tiny",
        fingerprint=fingerprint(base),
        domain=name,
        description="Letters.",
        recipe={"steps": 1},
        parameters=56,
        best_step=1,
        train_seconds=1.0,
        validations={0: Accuracy(1, 8), 1: Accuracy(3, 8)},
        base_accuracy=Accuracy(1, 8),
        expert_accuracy=Accuracy(3, 8),
        constant_accuracy=Accuracy(2, 8),
    )
    (folder / name).mkdir(parents=True)
    write_expert(folder / name, model, card)
    model.unload()
    return folder / name


@pytest.fixture
def expert(tmp_path: Path, tiny_model: Any) -> Path:
    return make_expert(tmp_path, tiny_model)


@pytest.fixture
def library(tmp_path: Path, tiny_model: Any) -> ExpertLibrary:
    return ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))


def test_add_open_and_remove(library: ExpertLibrary, expert: Path) -> None:
    assert library.add(expert) == "letters"
    assert library.add(expert, "again") == "again"
    opened = ExpertLibrary.open(library.folder)
    assert opened == library
    assert opened.names == ["letters", "again"]
    assert opened.config("letters").description == "Letters."
    z = opened.z("letters")
    assert len(z) == 14
    assert all(torch.equal(vector, torch.full((4,), 1.25)) for vector in z.values())
    opened.remove("letters")
    assert ExpertLibrary.open(library.folder).names == ["again"]
    assert not (library.folder / "letters").exists()


def test_an_empty_library_opens(library: ExpertLibrary) -> None:
    assert len(ExpertLibrary.open(library.folder)) == 0


NOT_FREE = ["none", "Prompt", "embedding", "t2l", "../evil", ".hidden", "a b", "math-v1.0", "-x", "a/b", "__base__"]


@pytest.mark.parametrize("name", [*NOT_FREE, "keys", "train", "nul", "COM1", "größe", "x" * 101])
def test_names_that_are_not_free(library: ExpertLibrary, expert: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name an expert"):
        library.add(expert, name)
    assert ExpertLibrary.open(library.folder).names == []
    path = library.folder / "library.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "experts": [name]}))
    with pytest.raises(UserError, match=r"library\.json: .* cannot name an expert"):
        ExpertLibrary.open(library.folder)


@pytest.mark.parametrize("name", ["mlp", "model", "0", "q_proj", "svf_z", "default", "x" * 100])
def test_experts_may_be_called_like_modules(library: ExpertLibrary, expert: Path, tiny_model: Any, name: str) -> None:
    library.add(expert, name)
    library.add(expert, "second")
    model = ExpertLibrary.open(library.folder).load(tiny_model)
    layers = [module for module in model.modules() if isinstance(module, SVFLinear)]
    assert [*model.peft_config] == [name, "second"]
    assert all((layer.svf_z[each] == 1.25).all() for layer in layers for each in (name, "second"))
    assert not any(p.requires_grad for p in model.parameters())


def test_a_name_is_taken_once(library: ExpertLibrary, expert: Path) -> None:
    library.add(expert)
    for name in ("letters", "Letters"):  # some file systems hold one folder only of the two
        with pytest.raises(UserError, match="has an expert 'letters' already"):
            library.add(expert, name)


def test_an_unknown_expert_names_the_nearest(library: ExpertLibrary, expert: Path) -> None:
    library.add(expert)
    with pytest.raises(UserError, match="did you mean 'letters'"):
        library.path("leters")


def test_another_base_is_refused_with_both_fingerprints(library: ExpertLibrary, expert: Path, tiny_model: Any) -> None:
    wanted = fingerprint(tiny_model)
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    found = fingerprint(tiny_model)
    for refusal in (lambda: library.check_base(tiny_model), lambda: load_expert(tiny_model, expert)):
        with pytest.raises(UserError, match=rf"{wanted}.*{found}"):
            refusal()
    other = ExpertLibrary.create(library.folder.with_name("other"), "other", found)
    with pytest.raises(UserError, match=rf"{wanted}.*{found}"):
        other.add(expert)


def test_damaged_files_are_named_and_not_loaded(library: ExpertLibrary, expert: Path, tiny_model: Any) -> None:
    path = expert / "adapter_model.safetensors"
    tensors, data = load_file(path), path.read_bytes()
    key = next(iter(tensors))

    def refused(match: str) -> None:
        for use in (lambda: library.add(expert), lambda: load_expert(tiny_model, expert)):
            with pytest.raises(UserError, match=match):
                use()
        assert ExpertLibrary.open(library.folder).names == []

    path.write_bytes(data[:-9])
    refused(r"adapter_model\.safetensors is damaged")
    save_file({**tensors, key: torch.full((4,), float("nan"))}, path)
    refused("not finite")
    save_file({**tensors, "lora_A.weight": torch.ones(2, 2)}, path)
    refused("not a z vector")
    save_file({}, path)
    refused("no z vectors")
    path.unlink()
    refused(r"no adapter_model\.safetensors")


def test_vectors_that_do_not_fit_the_base_are_refused(expert: Path, tiny_model: Any) -> None:
    path = expert / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(iter(tensors))
    save_file({**tensors, key: torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"3 values for .* which needs 4"):
        load_expert(tiny_model, expert)
    save_file({**tensors, "base_model.model.model.layers.9.mlp.up_proj.svf_z": torch.ones(4)}, path)
    with pytest.raises(UserError, match="does not have"):
        load_expert(tiny_model, expert)


def test_other_adapters_are_refused(tmp_path: Path, tiny_model: Any, library: ExpertLibrary) -> None:
    get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match="LORA adapter"):
        library.add(tmp_path / "lora")
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        library.add(tmp_path / "nothing")


def test_damaged_libraries_are_refused(library: ExpertLibrary, expert: Path, tmp_path: Path) -> None:
    library.add(expert)
    path = library.folder / "library.json"
    document = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        ExpertLibrary.open(library.folder)
    path.write_text(json.dumps({**document, "experts": ["letters", "gone"]}))
    with pytest.raises(UserError, match="gone"):
        ExpertLibrary.open(library.folder)
    with pytest.raises(UserError, match=r"no library\.json"):
        ExpertLibrary.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not empty"):
        ExpertLibrary.create(library.folder, "tiny", "0")
