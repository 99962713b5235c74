"""LoRAs by their names: added to a library, dispatched to, exported, and refused where they have no z."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dispatch.embedding import read_prompts
from experts import ExpertLibrary, Mixture
from experts.engine import NativeEngine, mixed
from experts.library import UnknownBase
from experts.svf.fingerprint import fingerprint
from selfadapt import SelfAdaptiveModel
from selfadapt.named_experts import add_expert

IDS = torch.arange(3, 43).view(2, 20)


def save_lora(base: Any, folder: Path, seed: int, name: str | None, **config: Any) -> Path:
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 4, "lora_alpha": 8} | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture
def loras(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        "x": save_lora(tiny_model, tmp_path / "x", 1, str(tiny_folder), target_modules=["q_proj", "up_proj"]),
        "y": save_lora(tiny_model, tmp_path / "y", 2, str(tiny_folder), target_modules=["up_proj"], r=2),
    }


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_lora_becomes_a_member_of_a_library_and_answers(
    run: Any, loras: dict[str, Path], tiny_model: Any, tiny_tokenizer: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    add = ("experts", "add", loras["x"], "--library", mine, "--name", "capitals", "--description", "Capitals.")
    assert run(*add)[:2] == (0, "capitals\n")
    code, out, _ = run("experts", "list", "--library", mine, "--json")
    document = json.loads(out)
    assert (code, document["experts"], document["loras"]) == (0, {"capitals": "Capitals."}, ["capitals"])
    assert (document["base"], document["fingerprint"]) == (str(tiny_folder), fingerprint(tiny_model))
    assert run("experts", "list", "--library", mine)[1] == "capitals (LoRA): Capitals.\n"
    shown = json.loads(run("experts", "show", "capitals", "--library", mine, "--json")[1])
    assert shown["matrices"]["model.layers.0.self_attn.q_proj"] == 4
    assert "[More Information Needed]" in (mine / "capitals" / "README.md").read_text()  # PEFT's template
    assert run("experts", "show", "capitals", "--library", mine)[1] == "# capitals\n\nCapitals.\n\n"

    code, out, err = run("generate", "hello", "--library", mine, "--dispatch", "capitals", "--max-new-tokens", 8)
    assert code == 0, err
    of_peft = PeftModel.from_pretrained(copy.deepcopy(tiny_model), str(loras["x"]))
    assert out == NativeEngine(of_peft, tiny_tokenizer).generate(["hello"], max_new_tokens=8)[0] + "\n"
    assert run("experts", "remove", "capitals", "--library", mine)[0] == 0
    assert ExpertLibrary.open(mine).names == []


def test_the_base_that_a_lora_names_is_compared_with_the_librarys(
    loras: dict[str, Path], tiny_model: Any, tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    copied, other = tmp_path / "copied", tmp_path / "other"
    for folder in (copied, other):
        tiny_model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        with torch.no_grad():
            tiny_model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    config = {"target_modules": ["up_proj"]}
    mine = tmp_path / "mine"
    add_expert(loras["x"], mine)
    assert add_expert(save_lora(tiny_model, tmp_path / "same", 3, str(copied), **config), mine) == "same"
    with pytest.raises(ValueError, match="fingerprint"):
        add_expert(save_lora(tiny_model, tmp_path / "elsewhere", 3, str(other), **config), mine)
    gone = save_lora(tiny_model, tmp_path / "gone", 3, str(tmp_path / "gone-base"), **config)
    with pytest.raises(UnknownBase, match=r"which cannot be loaded .*; name that base"):
        add_expert(gone, mine)
    with pytest.raises(UnknownBase, match="does not say which base"):
        add_expert(save_lora(tiny_model, tmp_path / "silent", 3, None, **config), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert add_expert(gone, mine, model=str(tiny_folder)) == "gone"
    assert ExpertLibrary.open(mine).names == ["x", "same", "gone"]


@pytest.mark.parametrize("dispatch", ["prompt", "mix"])
def test_dispatchers_choose_among_experts_and_loras(
    dispatch: str, library: ExpertLibrary, loras: dict[str, Path], tmp_path: Path
) -> None:
    for folder in loras.values():
        library.add(folder, description=f"Questions about {folder.name}.")
    if dispatch == "mix":
        Mixture.of({"x": 0.5, "a": 0.25, "y": -1.0}).write(tmp_path / "MIX.json")
        dispatch = str(tmp_path / "MIX.json")
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch=dispatch)
    prompts = ["a question", "another question", "x"]
    answers = model.generate(prompts, max_new_tokens=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert {*answer.mixture.names} <= {"a", "b", "x", "y"}
        assert model.generate([prompt], max_new_tokens=8)[0].text == answer.text


@pytest.fixture
def mixture(library: ExpertLibrary, loras: dict[str, Path], tmp_path: Path) -> Path:
    for folder in loras.values():
        library.add(folder)
    Mixture.of({"b": 0.5, "x": 0.75, "y": -0.5}).write(tmp_path / "MIX.json")
    return tmp_path / "MIX.json"


def test_a_mixture_with_loras_is_exported(
    run: Any, library: ExpertLibrary, mixture: Path, tiny_model: Any, tmp_path: Path
) -> None:
    loaded: Any = library.load(copy.deepcopy(tiny_model))
    with mixed(loaded, Mixture.read(mixture).expand(2)):
        wanted = logits(loaded)
    args = ("export", mixture, "--library", library.folder, "--json", "--output")
    code, out, err = run(*args, tmp_path / "lora", "--format", "lora")
    assert code == 0, err
    document = json.loads(out)
    assert (document["rank"], document["energy_kept"]) == (8 + 4 + 2, 1.0)
    assert document["nats_per_token"]["lora"] == document["nats_per_token"]["expert"]
    exported = PeftModel.from_pretrained(copy.deepcopy(tiny_model), str(tmp_path / "lora"))
    torch.testing.assert_close(logits(exported), wanted, atol=1e-4, rtol=1e-4)

    code, out, err = run(*args, tmp_path / "merged", "--format", "merged")
    assert code == 0, err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)

    code, out, err = run(*args, tmp_path / "small", "--format", "lora", "--rank", 5)
    assert code == 0, err
    kept = json.loads(out)["energy_kept"]
    exact, small = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "small"))
    energy = rest = 0.0
    for key in exact:
        if key.endswith("lora_A.weight"):
            other = key.replace("lora_A", "lora_B")
            differences = [each[other].double() @ each[key].double() for each in (exact, small)]
            best = torch.linalg.svdvals(differences[0])[5:].square().sum()  # Eckart-Young
            torch.testing.assert_close((differences[0] - differences[1]).square().sum(), best, rtol=1e-3, atol=1e-6)
            energy, rest = energy + differences[0].square().sum().item(), rest + best.item()
    assert kept == pytest.approx(1 - rest / energy, abs=1e-4)
    assert kept < 0.999


def test_a_lora_alone_is_exported_by_name_and_by_folder(
    run: Any, library: ExpertLibrary, loras: dict[str, Path], mixture: Path, tiny_model: Any, tmp_path: Path
) -> None:
    wanted = logits(PeftModel.from_pretrained(copy.deepcopy(tiny_model), str(loras["x"])))
    for number, name in enumerate(("x", loras["x"])):
        output = tmp_path / f"out{number}"
        code, _, err = run("export", name, "--library", library.folder, "--format", "merged", "--output", output)
        assert code == 0, err
        merged = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
        torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)


def test_what_takes_an_experts_z_refuses_a_lora(
    run: Any, library: ExpertLibrary, mixture: Path, tiny_folder: Path, tiny_model: Any, tmp_path: Path
) -> None:
    head = save_lora(tiny_model, tmp_path / "head", 3, str(tiny_folder), target_modules=["lm_head"])
    for args, message in (
        (("transfer", "x", "--to", tiny_folder), "x is a LORA adapter, not an SVF expert"),
        (("transfer", mixture, "--to", tiny_folder), "LoRAs in it"),
        (("export", head, "--format", "merged"), "shares its weight with the input embeddings"),
    ):
        code, out, err = run(*args, "--library", library.folder, "--output", tmp_path / "out")
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_loras_that_were_trained_here_are_dispatched_to_by_default(recipe: Path, run: Any, tmp_path: Path) -> None:
    document = yaml.safe_load(recipe.read_text())
    document["adapt"] = {"method": "lora", "rank": 2}
    document["training"] = {"objective": "next_token", "learning_rate": 0.01, "steps": 1, "sequences_per_step": 2}
    asked = {"sums": "What is {} plus 4?", "animals": "How many legs do {} cows have?"}
    for name, prompt in asked.items():
        rows = [{"prompt": prompt.format(n), "answer": str(n)} for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document["domain"] = {
            "kind": "jsonl",
            "name": name,
            "description": f"Questions about {name}.",
            "path": str(tmp_path / f"{name}.jsonl"),
            "judged_by": "last_number",
        }
        recipe.write_text(yaml.safe_dump(document))
        code, _, err = run("train", recipe, "--output", tmp_path / "runs" / name)
        assert code == 0, err
        code, _, err = run("experts", "add", tmp_path / "runs" / name, "--library", tmp_path / "mine")
        assert code == 0, err
    library = ExpertLibrary.open(tmp_path / "mine")
    assert library.descriptions() == {name: f"Questions about {name}." for name in asked}
    assert all(len(read_prompts(library.path(name))[1]) for name in asked)
    model = SelfAdaptiveModel.from_pretrained(library=library)
    answers = model.generate([prompt.format(30) for prompt in asked.values()], max_new_tokens=2)
    assert [answer.mixture[0] for answer in answers] == [{"sums": 1.0}, {"animals": 1.0}]
