"""From a description to files: what other people's code loads, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from experts.library import ExpertLibrary, load_expert
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint
from experts.text_to_lora import TextToAdapter
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.rows import adapted_rows

TEXTS = ["Add two numbers.", "Translate into French."]

PLAIN_PEFT = """
import sys, torch
from safetensors.torch import save_file
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2])
save_file({"logits": model(torch.arange(3, 20)[None]).logits.detach()}, sys.argv[3])
assert not any(name.split(".")[0] in ("experts", "dispatch", "selfadapt") for name in sys.modules)
"""


@pytest.mark.long
def test_a_written_lora_loads_in_plain_peft(
    make_writer: Any, tiny_model: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    output = LoraOutput(rank=5, alpha=10, size="M")
    writer = make_writer(output, trained=True)
    writer.generate(TEXTS)[1].write(tmp_path / "lora")
    # In another process and another folder, where this package is not on the path.
    command = [sys.executable, "-c", PLAIN_PEFT, tiny_folder, tmp_path / "lora", tmp_path / "logits.safetensors"]
    subprocess.run(command, check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    with torch.no_grad(), adapted_rows(tiny_model, writer.write(TEXTS[1:]), scaling=output.scaling):
        torch.testing.assert_close(found, tiny_model(torch.arange(3, 20)[None]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 6])
def test_a_written_expert_is_an_expert_like_any_other(
    rank: int | None, make_writer: Any, tiny_model: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    writer = make_writer(SvfOutput(rank=rank), trained=True, fingerprint=fingerprint(tiny_model))
    expert = writer.generate(TEXTS)[0]
    expert.write(tmp_path / "adding")
    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))
    library.add(tmp_path / "adding")
    assert library.config("adding").description == TEXTS[0]
    assert all(torch.equal(z, expert.z[name]) for name, z in library.z("adding").items())
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert load_expert(base, tmp_path / "adding").active_adapter == "default"


@pytest.mark.parametrize("output", [LoraOutput(size="S"), SvfOutput(rank=4)], ids=str)
def test_a_network_comes_back_as_it_was(output: Any, make_writer: Any, encoder: Any, tmp_path: Path) -> None:
    writer = make_writer(output, trained=True, fingerprint="0123")
    writer.save_pretrained(tmp_path / "network")
    again = TextToAdapter.from_pretrained(tmp_path / "network", encoder=encoder)
    assert again.network.spec == writer.network.spec
    for wanted, found in zip(*(w.network.numbers(w.write(TEXTS)) for w in (writer, again)), strict=True):
        assert torch.equal(wanted, found)
    assert {path.name for path in (tmp_path / "network").iterdir()} == {"network.json", "network.safetensors"}


def test_nothing_is_overwritten(make_writer: Any, tmp_path: Path) -> None:
    for number, output in enumerate((LoraOutput(), SvfOutput())):
        adapter = make_writer(output).generate(TEXTS)[0]
        adapter.write(tmp_path / str(number))
        with pytest.raises(UserError, match="exists already"):
            adapter.write(tmp_path / str(number))


def test_an_empty_description_is_refused(make_writer: Any) -> None:
    writer = make_writer(LoraOutput())
    with pytest.raises(UserError, match="description is empty"):
        writer.generate(["Add two numbers.", "  \n"])
    with pytest.raises(UserError, match="no description"):
        writer.generate([])
    with pytest.raises(UserError, match="must be a list"):
        writer.generate("Add two numbers.")


def test_a_folder_that_is_not_a_network_is_refused(make_writer: Any, encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "network"
    with pytest.raises(UserError, match=r"has no network\.json"):
        TextToAdapter.from_pretrained(folder, encoder=encoder)
    make_writer(LoraOutput()).save_pretrained(folder)

    tensors = load_file(folder / "network.safetensors")
    not_finite = tensors["task.0.weight"].clone()
    not_finite[0, 0] = torch.nan
    for wrong, said in ((torch.zeros(1), "its tensors are not those"), (not_finite, r"task\.0\.weight .* not finite")):
        save_file({**tensors, "task.0.weight": wrong}, folder / "network.safetensors")
        with pytest.raises(UserError, match=f"safetensors is damaged: {said}"):
            TextToAdapter.from_pretrained(folder, encoder=encoder)
    document = json.loads((folder / "network.json").read_text())
    for damaged, said in [
        ("{", "not JSON"),
        ("[]", "is damaged"),
        (json.dumps({**document, "matrices": 3}), "is damaged: matrices: Input should be"),
        (json.dumps({**document, "latent_size": 0}), "is damaged: .*latent_size must be at least 1"),
        (json.dumps({**document, "output": {}}), "is damaged"),
    ]:
        (folder / "network.json").write_text(damaged)
        with pytest.raises(UserError, match=rf"network\.json:? {said}"):
            TextToAdapter.from_pretrained(folder, encoder=encoder)


def test_a_network_that_no_memory_can_hold_is_refused(make_writer: Any) -> None:
    with pytest.raises(UserError, match=r"does not fit into memory with .* head_size 4096 and rank 2000000000"):
        make_writer(LoraOutput(rank=2_000_000_000), head_size=4096)  # petabytes, more than any address has bits for


def test_another_encoder_is_refused(make_writer: Any, encoder: Any, tmp_path: Path) -> None:
    writer = make_writer(LoraOutput())
    writer.save_pretrained(tmp_path / "network")
    encoder.name = "words"
    with pytest.raises(UserError, match="trained with the encoder letters, not words"):
        TextToAdapter.from_pretrained(tmp_path / "network", encoder=encoder)
    encoder.size = 3
    with pytest.raises(UserError, match="embeddings of 27 numbers"):
        TextToAdapter(writer.network, encoder)
