"""Who answers where nobody says it: the experts of a library, given or shipped, by what the prompts are about."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatch import EmbeddingDispatcher
from experts import ExpertLibrary
from experts.text_to_lora.encoder import load_encoder
from selfadapt import SelfAdaptiveModel

PROMPTS = ["What is the sum of the numbers 3 and 4?", "Which animals have six legs?", "Berlin"]
WHO = [{"a": 1.0}, {"b": 1.0}, {}]


@pytest.fixture
def shipped(library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny base under another name than its library says, which comes with the package."""
    shutil.copytree(library.folder, tmp_path / "shipped" / "tiny-base")
    monkeypatch.setattr("experts.shipped.FOLDER", tmp_path / "shipped")
    return Path(library.base).rename(tmp_path / "renamed")


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    load_encoder.cache_clear()
    yield
    load_encoder.cache_clear()


def mixtures(model: SelfAdaptiveModel) -> list[dict[str, float]]:
    return [answer.mixture[0] for answer in model.generate(PROMPTS, max_new_tokens=2)]


def test_a_library_that_is_given_is_dispatched_by_embedding(library: ExpertLibrary, run: Any) -> None:
    assert mixtures(SelfAdaptiveModel.from_pretrained(library=library)) == WHO
    code, out, err = run("generate", *PROMPTS, "--library", library.folder, "--max-new-tokens", 2, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["dispatch"] == "embedding"
    assert [answer["mixture"] for answer in said["answers"]] == WHO
    out = run("generate", *PROMPTS, "--library", library.folder, "--dispatch", "none", "--json")[1]
    assert json.loads(out)["dispatch"] == "none"
    assert all(answer["mixture"] == {} for answer in json.loads(out)["answers"])


def test_experts_that_come_with_the_base_are_found_by_the_base(shipped: Path) -> None:
    assert mixtures(SelfAdaptiveModel.from_pretrained(shipped)) == WHO
    assert mixtures(SelfAdaptiveModel.from_pretrained(shipped, dispatch="none")) == [{}] * 3


def test_a_base_without_experts_and_an_empty_library_are_the_base(library: ExpertLibrary, tmp_path: Path) -> None:
    assert mixtures(SelfAdaptiveModel.from_pretrained(library.base)) == [{}] * 3
    empty = ExpertLibrary.create(tmp_path / "empty", library.base, library.fingerprint)
    assert mixtures(SelfAdaptiveModel.from_pretrained(library=empty)) == [{}] * 3


@pytest.mark.usefixtures("no_encoder")
def test_without_an_encoder_the_base_answers_for_a_library_and_it_is_said(
    library: ExpertLibrary, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    assert mixtures(model) == [{}] * 3
    assert set(model.engine.experts) == {"a", "b"}  # for a dispatcher of the user's own
    [said] = lines(caplog)
    assert "pip install 'selfadapt[embedding]'" in said
    assert "set dispatch to choose who answers (a, b, prompt, none)" in said
    code, out, err = run("generate", "hi", "--library", library.folder, "--max-new-tokens", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["dispatch"] == "none"
    caplog.clear()
    SelfAdaptiveModel.from_pretrained(library=library, dispatch="none")
    assert not lines(caplog)


@pytest.mark.usefixtures("no_encoder")
def test_without_an_encoder_the_base_answers_for_shipped_experts_and_it_is_said(
    shipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert mixtures(SelfAdaptiveModel.from_pretrained(shipped)) == [{}] * 3
    assert len(lines(caplog)) == 1


def test_an_expert_that_nothing_is_known_of_is_not_passed_over_in_silence(
    library: ExpertLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    config = library.path("b") / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"description": None}))
    assert mixtures(SelfAdaptiveModel.from_pretrained(library=library)) == [{}] * 3
    assert "'b' has neither a description" in lines(caplog)[0]
    named = SelfAdaptiveModel.from_pretrained(library=library, dispatch="embedding")
    assert isinstance(named.dispatcher, EmbeddingDispatcher)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name == "selfadapt.two_pass"]
    assert not any("\n" in line for line in said)
    return said
