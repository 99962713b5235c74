"""Training by reconstruction: a library comes back from its descriptions, or is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.text_to_lora.network import LoraOutput, LowRank
from experts.text_to_lora.reconstruction import (
    Library,
    Reconstruction,
    ReconstructionLoss,
    collate,
    descriptions_of,
    find_adapters,
    hold_out,
    read_targets,
    with_identity,
)
from experts.text_to_lora.rows import base_factors
from experts.text_to_lora.run import Learning, train_network
from experts.text_to_lora.shapes import Matrix
from experts.text_to_lora.writer import TextToAdapter
from experts.training.run import Run

DESCRIPTIONS = {"adding": ("Add numbers.", "Sums!"), "rhyming": ("Find a rhyme.",), "french": ("Say it in French.",)}
MATRICES = [Matrix("layers.0.q", 8, 6), Matrix("layers.1.q", 8, 6), Matrix("layers.0.v", 4, 6)]


def lora_library(folder: Path, rank: int = 2) -> Path:
    torch.manual_seed(0)
    for name in DESCRIPTIONS:
        factors = {m.name: (torch.randn(rank, m.in_features), torch.randn(m.out_features, rank)) for m in MATRICES}
        a, b = ({matrix: pair[part] for matrix, pair in factors.items()} for part in (0, 1))
        Lora(a, b, alpha=16, rslora=True).write(folder / name)
    return folder


def svf_library(folder: Path) -> Path:
    torch.manual_seed(0)
    for name, texts in DESCRIPTIONS.items():
        z = {m.name: 1 + 0.1 * torch.randn(min(m.out_features, m.in_features)) for m in MATRICES}
        Expert(z, "tiny", "0123", texts[0]).write(folder / name)
    return folder


@pytest.mark.parametrize("kind", ["lora", "svf"])
def test_a_library_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    targets = read_targets(lora_library(tmp_path) if kind == "lora" else svf_library(tmp_path))
    assert targets.names == sorted(DESCRIPTIONS)
    for row, name in enumerate(targets.names):
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        adapter = targets.adapters["layers.1.q"]
        if isinstance(adapter, LowRank):
            assert torch.equal(adapter.b[row], tensors["base_model.model.layers.1.q.lora_B.weight"])
            assert targets.output == LoraOutput(rank=2, target_modules=sorted(m.name for m in MATRICES))
        else:
            assert torch.equal(adapter[row], tensors["base_model.model.layers.1.q.svf_z"])
            assert targets.descriptions[row] == DESCRIPTIONS[name][0]


def make(folder: Path, encoder: Any, options: Reconstruction, size: Any = "L") -> Any:
    targets = read_targets(folder)
    output = replace(targets.output, size=size) if isinstance(targets.output, LoraOutput) else targets.output
    normalised = options.loss == "normalised"
    writer = TextToAdapter.untrained(
        output, MATRICES, encoder, fingerprint=targets.fingerprint, normalised=normalised, dropout=0.0
    )
    library = Library(targets, writer.network, [encoder(own) for own in descriptions_of(targets, DESCRIPTIONS)])
    if normalised:
        library.normalise(writer.network, [0, 1, 2])
    return writer, library, targets


@pytest.mark.parametrize("kind", ["lora", "svf"])
@pytest.mark.parametrize("size", ["L", "S"])
def test_a_normalised_network_begins_at_the_mean_of_the_library(
    kind: str, size: str, encoder: Any, tmp_path: Path
) -> None:
    options = Reconstruction(steps=1, adapters="")
    folder = lora_library(tmp_path) if kind == "lora" else svf_library(tmp_path)
    writer, _, targets = make(folder, encoder, options, size)
    means = [numbers.mean(0) for numbers in writer.network.numbers(targets.adapters)]
    for numbers, mean in zip(writer.network.numbers(writer.write(["Anything."])), means, strict=True):
        torch.testing.assert_close(numbers[0], mean)


@pytest.mark.parametrize("kind", ["lora", "svf"])
@pytest.mark.parametrize("loss", ["normalised", "difference"])
@pytest.mark.long
def test_the_library_comes_back_from_its_descriptions(kind: str, loss: Any, encoder: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = lora_library(tmp_path / kind) if kind == "lora" else svf_library(tmp_path / kind)
    options = Reconstruction(
        steps=300,
        adapters="",
        loss=loss,
        learning_rate=3e-3,
        adapters_per_step=3,
        micro_batch_size=3,
        validate_every=100,
        weight_decay=0,
    )
    writer, library, targets = make(folder, encoder, options)
    base = torch.nn.ModuleDict()  # only its weights matter here
    factors = None
    if kind == "svf" and loss == "difference":
        weights = {m.name: torch.nn.Linear(m.in_features, m.out_features) for m in MATRICES}
        base.get_submodule = weights.__getitem__  # type: ignore[method-assign, assignment]
        factors = base_factors(base, writer.network)
    result = train_network(
        writer,
        Learning(
            ReconstructionLoss(writer.network, loss, factors),
            library.items(options, [0, 1, 2]),
            [library.item(row, library.descriptions[row][0]) for row in range(3)],
            collate,
            "It learned three.",
        ),
        options,
        Run(tmp_path / "network", {}),
    )
    assert result.validations[300] < 0.15 * result.validations[0]
    assert ("fingerprint" in (tmp_path / "network" / "README.md").read_text()) == (kind == "svf")
    again = TextToAdapter.from_pretrained(tmp_path / "network", encoder=encoder)
    for row, name in enumerate(targets.names):
        for text in DESCRIPTIONS[name]:
            for matrix, adapter in again.write([text]).items():
                wanted = targets.adapters[matrix]
                if isinstance(adapter, LowRank):
                    found, wanted = adapter.b @ adapter.a, (wanted.b @ wanted.a)[row]
                else:
                    found, wanted = adapter - 1, wanted[row] - 1
                assert (found[0] - wanted).norm() < 0.3 * wanted.norm()


def test_libraries_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapters"):
        read_targets(tmp_path)
    folder = lora_library(tmp_path / "mixed")
    (folder / "french" / "adapter_config.json").rename(tmp_path / "kept.json")
    config = json.loads((tmp_path / "kept.json").read_text())

    def refused(change: dict[str, Any], message: str) -> None:
        (folder / "french" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            read_targets(folder)

    refused({"lora_alpha": 3}, "adding is a LoRA of rank 2 and scaling 11.3 .* french a LoRA of rank 2 and scaling 2.1")
    refused({"r": 4}, "ranks of its factors are not those in its configuration")
    refused({"peft_type": "IA3"}, "is a IA3 adapter")
    tensors = load_file(folder / "french" / "adapter_model.safetensors")
    three = {k: v.repeat_interleave(2, 0 if "lora_A" in k else 1) for k, v in tensors.items()}
    save_file(
        {**tensors, **{k: v for k, v in three.items() if ".q." in k}}, folder / "french" / "adapter_model.safetensors"
    )
    refused({"rank_pattern": {"q": 4}}, r"mixed ranks, \[2, 4\]")
    save_file(three, folder / "french" / "adapter_model.safetensors")
    refused({"r": 4}, "adding is a LoRA of rank 2 .* french a LoRA of rank 4")
    save_file({k: v for k, v in tensors.items() if "lora_B" not in k}, folder / "french" / "adapter_model.safetensors")
    refused({}, "is damaged and was not loaded: A and B of .* do not fit together")
    (folder / "french" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_targets(folder)


def test_peft_s_own_mixed_ranks_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM")
    get_peft_model(tiny_model, config).save_pretrained(str(tmp_path / "one"), save_embedding_layers=False)
    with pytest.raises(UserError, match=r"a LoRA of mixed ranks, \[2, 4\]"):
        read_targets(tmp_path)


def test_adapters_of_another_base_are_refused(encoder: Any, tmp_path: Path) -> None:
    for number, library in enumerate((lora_library, svf_library)):
        targets = read_targets(library(tmp_path / str(number)))
        for matrix in (Matrix("layers.0.q", 5, 6), Matrix("layers.0.k", 8, 6)):
            network = TextToAdapter.untrained(targets.output, [matrix], encoder).network
            with pytest.raises(UserError, match=f"another base: nothing in them fits {matrix.name}"):
                Library(targets, network, [])


def test_an_adapter_that_nobody_describes_is_named(tmp_path: Path) -> None:
    targets = read_targets(lora_library(tmp_path))
    with pytest.raises(UserError, match="the adapter french has no description"):
        descriptions_of(targets, {"adding": ("Add.",)})


def test_of_a_library_the_experts_that_answer_are_learned(tmp_path: Path) -> None:
    folder = svf_library(tmp_path / "experts")
    library = ExpertLibrary.create(tmp_path / "library", "tiny", "0123")
    for name in ("adding", "rhyming"):
        library.add(folder / name)
    library.add(folder / "french", classifier=True)
    assert read_targets(tmp_path / "library").names == ["adding", "rhyming"]


def test_experts_that_come_with_a_base_are_named_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_targets(find_adapters("smollm2-135m")).names == ["groups", "relations", "stories", "sums"]
    svf_library(tmp_path / "smollm2-135m")  # a folder of one's own comes first
    assert read_targets(find_adapters("smollm2-135m")).names == sorted(DESCRIPTIONS)


def test_the_identity_of_a_task_is_z_of_one(tmp_path: Path) -> None:
    targets = read_targets(svf_library(tmp_path / "svf"))
    both = with_identity(targets, ["talk", "code"])
    assert both.names == [*targets.names, "talk", "code"]
    for matrix, z in both.adapters.items():
        assert isinstance(z, torch.Tensor)
        assert torch.equal(z[:3], targets.adapters[matrix])  # type: ignore[arg-type]
        assert torch.equal(z[3:], torch.ones(2, z.shape[1]))
    with pytest.raises(UserError, match="identity names french, for which there is an adapter"):
        with_identity(targets, ["french", "code"])
    with pytest.raises(UserError, match="identity is for experts"):
        with_identity(read_targets(lora_library(tmp_path / "lora")), ["talk"])
    with pytest.raises(UserError, match="the adapter code has no description"):
        descriptions_of(both, {**DESCRIPTIONS, "talk": ("Chat.",)})


def test_descriptions_are_held_out_by_their_texts_alone() -> None:
    texts = [tuple(f"Add {number}." for number in range(10)), ("Find a rhyme.",)]
    learned, held_out = hold_out(texts, 0.2)
    assert [len(own) for own in learned] == [8, 1]
    assert {row: len(own) for row, own in held_out.items()} == {0: 2}
    assert sorted(learned[0] + held_out[0]) == sorted(texts[0])
    assert set(hold_out([texts[0][::-1]], 0.2)[1][0]) == set(held_out[0])  # in whatever order they come
    assert hold_out(texts, 0.0) == (texts, {})
    assert hold_out([("One.", "One.", "Two.")], 0.5)[0][0] != ()
    with pytest.raises(UserError, match="enough descriptions"):
        hold_out([("One.", "One.")], 0.5)  # the same twice
    with pytest.raises(UserError, match=r"enough descriptions to hold out a share of 0\.2"):
        hold_out([("One.",)], 0.2)
    with pytest.raises(UserError, match="set one alone"):
        Reconstruction(steps=1, adapters="", validation_adapters=1, validation_descriptions=0.2)
    with pytest.raises(UserError, match="below 1"):
        Reconstruction(steps=1, adapters="", validation_descriptions=1.0)
