"""How a base is loaded is said in one way, whatever answers with it: `--dtype`, `--device` and `--quantization`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from experts import Expert, ExpertLibrary
from experts.svf.fingerprint import fingerprint, sketch
from selfadapt import SelfAdaptiveModel, load_base
from selfadapt.serving.served import load_served

NF4 = ("--quantization", "nf4")
PROMPTS = ["What is 2 + 2?", "Which animal barks?"]


@pytest.fixture
def library(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> ExpertLibrary:
    """Two experts of the dense base whose rank a base of few bits takes."""
    library = ExpertLibrary.create(tmp_path / "library", str(tiny_folder), fingerprint(tiny_model), sketch(tiny_model))
    for name, strength in (("more", 3.0), ("less", -2.0)):
        z = {f"model.layers.{i}.mlp.up_proj": torch.linspace(strength, 1, 8) for i in range(2)}
        Expert(z, library.base, library.fingerprint, f"{name.capitalize()} of it.", sketch=sketch(tiny_model)).write(
            tmp_path / name
        )
        library.add(tmp_path / name)
    return library


def test_a_server_of_few_bits(library: ExpertLibrary) -> None:
    served = load_served(None, library.folder, "more", rows=4, waiting=4, quantization="nf4", dtype="bfloat16")
    try:
        layer = served.engine.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")
        assert isinstance(layer, Linear4bit)
        assert layer.compute_dtype == torch.bfloat16
    finally:
        served.batch.close(1)


def test_dispatch_and_generate_read_with_it(run: Any, library: ExpertLibrary) -> None:
    wanted = SelfAdaptiveModel.from_pretrained(None, library, "prompt", quantization="nf4")
    mixture = wanted.dispatch(PROMPTS)
    code, out, err = run("dispatch", *PROMPTS, "--dispatch", "prompt", "--library", library.folder, *NF4, "--json")
    assert code == 0, err
    read = json.loads(out)["prompts"]
    assert [each["confidence"] for each in read] == pytest.approx(mixture.confidence)
    code, out, err = run("dispatch", *PROMPTS, "--dispatch", "prompt", "--library", library.folder, "--json")
    assert [each["confidence"] for each in json.loads(out)["prompts"]] != pytest.approx(mixture.confidence)
    args = ("--dispatch", "more", "--library", library.folder, "--max-new-tokens", 8)
    code, out, err = run("generate", *PROMPTS, *args, *NF4, "--device", "cpu", "--json")
    assert code == 0, err
    more = SelfAdaptiveModel.from_pretrained(None, library, "more", quantization="nf4")
    texts = [answer.text for answer in more.generate(PROMPTS, max_new_tokens=8)]
    assert [answer["text"] for answer in json.loads(out)["answers"]] == texts


def test_a_mixture_is_searched_on_it(run: Any, library: ExpertLibrary, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * 4)
    found = {}
    for name, more in (("dense", ()), ("nf4", NF4)):
        args = ("--library", library.folder, "--population", 4, "--generations", 1, "--max-new-tokens", 2, *more)
        code, out, err = run(
            "adapt", tmp_path / "examples.jsonl", "--output", tmp_path / f"{name}.json", *args, "--json"
        )
        assert code == 0, err
        found[name] = json.loads(out)["loglikelihood"]
    assert found["dense"] != pytest.approx(found["nf4"])


def test_an_expert_becomes_a_lora_of_it(run: Any, library: ExpertLibrary, tiny_folder: Path, tmp_path: Path) -> None:
    export = ("export", "more", "--library", library.folder, "--output", tmp_path / "out")
    code, out, err = run(*export, "--format", "merged", *NF4)
    assert (code, out) == (1, "")
    assert "would swallow what an expert changes; leave out --quantization" in err
    assert len(err.splitlines()) == 1

    code, out, err = run(*export, "--format", "lora", *NF4, "--json")
    assert code == 0, err
    written = json.loads(out)
    assert written["energy_kept"] == 1.0
    assert written["nats_per_token"]["lora"] == pytest.approx(written["nats_per_token"]["expert"], abs=1e-4)
    ids = torch.arange(3, 23)[None]
    model: Any = SelfAdaptiveModel.from_pretrained(None, library, "more", quantization="nf4").model.eval()
    with torch.no_grad(), model.base_model.mixed(["more"], torch.ones(1, 1)):
        wanted = model(ids).logits
    base, _ = load_base(tiny_folder, quantization="nf4")
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_vllm_loads_the_base_by_itself(run: Any) -> None:
    code, out, err = run("serve", "--engine", "vllm", *NF4)
    assert (code, out, err) == (1, "", "error: --quantization is only for the native engine; leave it out\n")


@pytest.mark.parametrize("verb", ["generate", "serve", "play", "dispatch", "adapt", "eval", "export", "t2l evaluate"])
def test_every_verb_that_answers_says_how_the_base_is_loaded(run: Any, verb: str) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert all(f"--{option} " in out for option in ("dtype", "device", "quantization"))
