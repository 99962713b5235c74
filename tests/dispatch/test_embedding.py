"""The embedding dispatcher: nearest centroid, calibrated, with abstention."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from dispatch import embedding
from dispatch.embedding import FILE, EmbeddingDispatcher, read_prompts, write_prompts
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.text_to_lora.encoder import encode
from selfadapt.verbs.experts import experts_add

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

SUMS = [f"What is {a} plus {b}?" for a in range(3, 9) for b in range(2, 7)]
ANIMALS = [
    f"{question} a {animal} {verb}?"
    for question, verb in (("What does", "eat"), ("Where does", "live"), ("How long does", "sleep"))
    for animal in ("lion", "cow", "whale", "cat", "snail", "dog", "horse", "sparrow", "bear", "fox", "wolf", "sheep")
]
Random(0).shuffle(ANIMALS)
SMALL_TALK = ["Hi there, nice to meet you!", "Sing me a song, please.", "I would like to book a table for two."]


@pytest.fixture
def stored(library: ExpertLibrary) -> ExpertLibrary:
    write_prompts(library.path("a"), SUMS[::2])
    write_prompts(library.path("b"), [[{"role": "user", "content": text}] for text in ANIMALS[::2]])
    return library


def test_prompts_go_to_the_expert_of_their_domain(stored: ExpertLibrary) -> None:
    dispatcher = EmbeddingDispatcher.from_library(stored)
    mixture = dispatcher(SUMS[1::2] + ANIMALS[1::2] + SMALL_TALK)
    sums, animals, talk = mixture.weights.split([len(SUMS[1::2]), len(ANIMALS[1::2]), len(SMALL_TALK)])
    assert sums.mean(0).tolist() == pytest.approx([1, 0], abs=0.15)
    assert not animals[:, 0].any()
    assert animals[:, 1].mean() > 0.6  # of so few stored prompts the lowest cosines are a rough guess
    assert not talk.any()  # the base answers
    assert mixture.names == ("a", "b")
    assert mixture.confidence is not None
    assert (mixture.confidence[: len(sums)] > 0.8).all()


def test_a_row_does_not_depend_on_the_others(stored: ExpertLibrary) -> None:
    dispatcher = EmbeddingDispatcher.from_library(stored, soft=True, false_alarms=0)
    prompts = [SUMS[1], SMALL_TALK[0], [{"role": "user", "content": ANIMALS[1]}]]
    together = dispatcher(prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(dispatcher([prompt]).weights[0], together.weights[row], atol=1e-3, rtol=1e-3)
    assert together.weights.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert (together.weights > 0).all()


def test_descriptions_do_where_no_prompts_are_stored(library: ExpertLibrary) -> None:
    mixture = EmbeddingDispatcher.from_library(library)(
        ["What is the sum of 3 and 4?", "Which animals live in Africa?"]
    )
    assert [mixture[0], mixture[1]] == [{"a": 1.0}, {"b": 1.0}]
    assert not EmbeddingDispatcher.from_library(library)(SMALL_TALK).weights.any()


def test_a_lora_is_found_as_an_expert_is(
    stored: ExpertLibrary, tiny_model: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """By its description, and better by examples of its prompts."""
    cities = [f"What is the capital of {c}?" for c in ("France", "Peru", "Japan", "Kenya", "Italy", "Norway", "Egypt")]
    model = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    model.save_pretrained(str(tmp_path / "lora"), save_embedding_layers=False)
    stored.add(tmp_path / "lora", "described", description="Capitals of countries.")
    assert EmbeddingDispatcher.from_library(stored, false_alarms=0)(cities[:1])[0] == {"described": 1.0}

    examples = tmp_path / "prompts.jsonl"
    examples.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in cities[2:]))
    experts_add(tmp_path / "lora", stored.folder, "shown", examples=examples)
    library = ExpertLibrary.open(stored.folder)
    assert b"Kenya" not in (library.path("shown") / FILE).read_bytes()
    library.remove("described")
    mixture = EmbeddingDispatcher.from_library(library, false_alarms=0)([*cities[:2], SUMS[1]])
    assert [mixture[row] for row in range(3)] == [{"shown": 1.0}] * 2 + [{"a": 1.0}]
    examples.write_text('{"prompt": 3}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: its 'prompt'"):
        experts_add(tmp_path / "lora", stored.folder, "another", examples=examples)
    assert "another" not in ExpertLibrary.open(stored.folder).names


def test_the_share_of_false_alarms_is_the_one_asked_for() -> None:
    """On prompts like the stored ones, which were not stored."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 64, generator=generator), dim=1)

    def around(k: int, n: int) -> Tensor:
        return F.normalize(centres[k] + 0.15 * torch.randn(n, 64, generator=generator), dim=1)

    for asked in (0.05, 0.2):
        dispatcher = EmbeddingDispatcher("abc", centres, [around(k, 128) for k in range(3)], false_alarms=asked)
        best = torch.cat([(around(k, 2000) @ dispatcher.centroids.T).max(1).values for k in range(3)])
        assert (best < dispatcher.threshold).float().mean().item() == pytest.approx(asked, abs=0.04)
    never = EmbeddingDispatcher("abc", centres, [around(k, 8) for k in range(3)], false_alarms=0)
    assert never.threshold == -1


def test_the_temperature_is_the_most_likely_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (4000,), generator=generator)
    cosines = torch.rand(4000, 3, generator=generator)
    chosen = torch.multinomial((cosines / 0.2).softmax(1), 1, generator=generator)[:, 0]
    assert embedding._temperature(cosines, chosen) == pytest.approx(0.2, rel=0.15)
    assert embedding._temperature(F.one_hot(labels, 3).float(), labels) < 0.05


def test_only_vectors_are_stored_and_damage_is_named(stored: ExpertLibrary) -> None:
    path = stored.path("a") / FILE
    assert b"plus" not in path.read_bytes()
    encoder, vectors = read_prompts(stored.path("a"))
    assert encoder == "all-MiniLM-L6-v2"
    torch.testing.assert_close(vectors, encode(SUMS[::2]), atol=1e-3, rtol=1e-2)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        EmbeddingDispatcher.from_library(stored)


def test_an_unknown_encoder_is_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="unknown text encoder"):
        encode(["hello"], str(tmp_path / "nothing"))
