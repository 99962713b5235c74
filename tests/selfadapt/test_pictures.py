"""Two passes on a base that sees: its dispatchers read what is asked about a picture, and its answers see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experts import Expert, ExpertLibrary
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint
from selfadapt import SelfAdaptiveModel, load_base

EXPERTS = {"colours": "Questions about colours.", "animals": "Questions about animals."}


@pytest.fixture
def library(seeing: Any, tmp_path: Path) -> ExpertLibrary:
    for half in seeing:
        half.save_pretrained(tmp_path / "base")
    library = ExpertLibrary.create(tmp_path / "library", str(tmp_path / "base"), fingerprint(seeing[0]))
    for seed, (name, description) in enumerate(EXPERTS.items()):
        generator = torch.Generator().manual_seed(seed)
        z = {f"model.language_model.layers.{i}.mlp.up_proj": 1 + torch.randn(8, generator=generator) for i in range(2)}
        Expert(z, library.base, library.fingerprint, description).write(tmp_path / name)
        library.add(tmp_path / name)
    return library


def asked(colour: str, question: str) -> list[dict[str, Any]]:
    picture = {"type": "image", "image": Image.new("RGB", (8, 8), colour)}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("dispatch", ["embedding", "prompt", "animals"])
def test_prompts_with_and_without_pictures_are_dispatched_and_answered(library: ExpertLibrary, dispatch: str) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch=dispatch)
    prompts: list[Any] = [asked("red", "What colour is it?"), asked("blue", "Which animal?"), "Which animal is it?"]
    answers = model.generate(prompts, max_new_tokens=4)
    mixtures = [answer.mixture[0] for answer in answers]
    texts = ["What colour is it?", "Which animal?", "Which animal is it?"]
    assert mixtures == [model.dispatch([text])[0] for text in texts]  # the picture plays no part in pass one
    if dispatch == "embedding":
        assert mixtures == [{"colours": 1.0}, {"animals": 1.0}, {"animals": 1.0}]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert "".join(model.stream(prompt, max_new_tokens=4)) == answer.text
    (other,) = model.generate([asked("white", "What colour is it?")], max_new_tokens=4)
    assert other.text != answers[0].text


def test_what_a_base_that_sees_cannot_do_is_refused(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch="animals")
    with pytest.raises(UserError, match="can only answer here"):
        model.loglikelihood([asked("red", "Which animal?")], ["a dog"])
    harness = pytest.importorskip("selfadapt.harness")
    with pytest.raises(UserError, match="need a base that reads text alone"):
        harness.SelfAdaptiveLM(model)


def test_its_experts_are_exported(run: Any, library: ExpertLibrary, tmp_path: Path) -> None:
    for form in ("lora", "merged"):
        args = ("--format", form, "--output", tmp_path / form, "--library", library.folder, "--json")
        code, out, err = run("export", "colours", *args)
        assert code == 0, err
        assert json.loads(out)["fingerprint"] == library.fingerprint
    merged, _ = load_base(str(tmp_path / "merged"))
    assert fingerprint(merged) != library.fingerprint


def test_next_token_training_is_refused(run: Any, library: ExpertLibrary, recipe: Path, tmp_path: Path) -> None:
    args = ("--model", library.base, "--output", tmp_path / "out")
    document = "\n".join(line for line in recipe.read_text().splitlines() if "per_" not in line)
    recipe.write_text(
        document.replace("learning_rate", "objective: next_token\n  sequences_per_step: 8\n  learning_rate")
    )
    code, _, err = run("train", recipe, *args)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: objective: next_token reads text alone")
