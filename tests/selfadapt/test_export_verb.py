"""`selfadapt export`: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from experts import Expert, ExpertLibrary, Mixture
from experts.svf.fingerprint import fingerprint, sketch, write_sketch


@pytest.fixture
def library(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> Path:
    library = ExpertLibrary.create(tmp_path / "library", str(tiny_folder), fingerprint(tiny_model))
    for name, rank in (("small", 8), ("whole", 32)):
        z = {f"model.layers.{i}.mlp.up_proj": torch.linspace(0.2, 1.8, rank) for i in range(2)}
        Expert(z, library.base, library.fingerprint, name.capitalize() + ".").write(tmp_path / name)
        library.add(tmp_path / name)
    Mixture.of({"small": 0.5, "whole": 0.5}).write(tmp_path / "mix.json")
    return library.folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 23).view(2, 10)).logits


def test_merged_and_lora_of_a_mixture_answer_alike(
    run: Any, library: Path, tiny_folder: Path, tiny_model: Any, tmp_path: Path
) -> None:
    mixture = str(tmp_path / "mix.json")
    code, out, err = run("export", mixture, "--format", "merged", "--output", tmp_path / "m", "--library", library)
    assert code == 0, err
    assert out.startswith(str(tmp_path / "m"))
    args = ("--format", "lora", "--rank", 32, "--library", library, "--json")
    code, out, err = run("export", mixture, "--output", tmp_path / "l", *args)
    assert code == 0, err
    document = json.loads(out)
    assert document["energy_kept"] == 1.0
    nats = document["nats_per_token"]
    assert nats["lora"] == pytest.approx(nats["expert"], abs=1e-5)
    assert nats["base"] != pytest.approx(nats["expert"], abs=1e-3)

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    lora = PeftModel.from_pretrained(tiny_model, str(tmp_path / "l"))
    torch.testing.assert_close(logits(lora), logits(merged), atol=1e-4, rtol=0)
    with lora.disable_adapter():
        assert (logits(lora) - logits(merged)).abs().max() > 0.01
    for folder in ("m", "l"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "small 0.50, whole 0.50" in card
        assert fingerprint(tiny_model) in card


def test_a_merged_checkpoint_has_the_dtype_asked_for(run: Any, library: Path, tmp_path: Path) -> None:
    args = ("--format", "merged", "--output", tmp_path / "m", "--library", library, "--dtype", "bfloat16")
    code, out, err = run("export", "small", *args)
    assert code == 0, err
    assert "bfloat16" in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").dtype == torch.bfloat16


def test_an_experts_own_folder_is_an_expert(run: Any, library: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("One text.\n\nAnother one.\n")
    args = ("--format", "lora", "--output", tmp_path / "l", "--texts", tmp_path / "texts.txt", "--json")
    code, out, err = run("export", tmp_path / "small", *args)
    assert code == 0, err
    document = json.loads(out)
    assert document["rank"] == 8
    assert document["measured_on"] == {"texts": "texts.txt", "tokens": len("One text.Another one.")}
    assert PeftConfig.from_pretrained(str(tmp_path / "l")).peft_type == "LORA"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["smal", "--format", "merged"], "unknown expert 'smal'; did you mean 'small'?"),
        (["none.json", "--format", "merged"], "no such file: none.json"),
        (["whole", "--format", "lora"], "choose a rank"),
        (["small", "--format", "lora", "--rank", "0"], "must be a whole number of 1 or more"),
        (["small", "--format", "merged", "--rank", "4"], "belong to --format lora"),
        (["small", "--format", "merged", "--output", "library"], "exists already"),
        (["small", "--format", "merged", "--dtype", "floaty"], "unknown dtype"),
        (["small", "--format", "lora", "--texts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    run: Any, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    args = args if "--output" in args else [*args, "--output", "out"]
    before = sorted(tmp_path.iterdir())
    code, out, err = run("export", *args, "--library", library)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_expert_of_another_base_is_refused(
    run: Any, library: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.add_(0.5)
    tiny_model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    args = ("--format", "merged", "--output", tmp_path / "out", "--library", library, "--model", tmp_path / "other")
    code, _, err = run("export", "small", *args)
    assert code == 1
    assert f"this one has {fingerprint(tiny_model)}" in err
    assert not (tmp_path / "out").exists()


def test_a_line_of_texts_is_one_text(run: Any, library: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("One\u2028text.\r\nAnother\u0085one.", encoding="utf-8-sig")
    args = ("--format", "lora", "--output", tmp_path / "l", "--texts", tmp_path / "texts.txt", "--json")
    code, out, err = run("export", tmp_path / "small", *args)
    assert code == 0, err
    assert json.loads(out)["measured_on"]["tokens"] == len("One\u2028text.Another\u0085one.".encode())


def test_a_merged_checkpoint_has_the_settings_of_the_base(
    run: Any, library: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 0]}
    (tiny_folder / "generation_config.json").write_text(json.dumps(settings))
    for name, change in (
        ("tokenizer_config.json", {"padding_side": "right", "pad_token": None}),
        ("config.json", {"pad_token_id": None}),
    ):
        document = json.loads((tiny_folder / name).read_text())
        (tiny_folder / name).write_text(json.dumps(document | change))
    args = ("--format", "merged", "--output", tmp_path / "m", "--library", library)
    code, _, err = run("export", "small", *args)
    assert code == 0, err
    own = {path.name for path in tiny_folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"} <= own
    assert {path.name for path in (tmp_path / "m").iterdir()} == own | {"README.md"}
    for name in own - {"config.json", "model.safetensors"}:
        assert (tmp_path / "m" / name).read_bytes() == (tiny_folder / name).read_bytes(), name
    merged, base = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "m", tiny_folder))
    assert merged == base


def test_a_merged_checkpoint_has_no_settings_where_the_base_has_none(
    run: Any, library: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tiny_folder / "generation_config.json").unlink()
    code, _, err = run("export", "small", "--format", "merged", "--output", tmp_path / "m", "--library", library)
    assert code == 0, err
    assert not (tmp_path / "m" / "generation_config.json").exists()


def test_a_rounding_of_the_base_is_said_and_recorded(run: Any, library: Path, tiny_model: Any, tmp_path: Path) -> None:
    write_sketch(library, sketch(tiny_model))
    args = ("--format", "lora", "--output", tmp_path / "l", "--library", library, "--dtype", "float16", "--json")
    code, out, err = run("export", "small", *args)
    assert code == 0, err
    document = json.loads(out)
    assert document["fingerprint"] == fingerprint(tiny_model)
    assert document["base_fingerprint"] == fingerprint(tiny_model.half())
    card = (tmp_path / "l" / "README.md").read_text()
    assert document["fingerprint"] in card
    assert document["base_fingerprint"] in card
