"""What a base is called in files that others read, and here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.exchange.export import best_lora
from experts.expert import Expert
from experts.outside.base_names import BUILT_IN, BUILT_IN_FINGERPRINT, ORIGINAL, is_hub_id, own_name, public_name
from experts.shipped import shipped_library
from experts.svf.fingerprint import fingerprint

SHIPPED = shipped_library(BUILT_IN) or Path("missing")


def test_only_the_built_in_base_has_two_names() -> None:
    assert public_name(BUILT_IN) == ORIGINAL
    assert own_name(ORIGINAL, BUILT_IN_FINGERPRINT) == BUILT_IN
    assert own_name(ORIGINAL, "of the hub's") == ORIGINAL
    for other in ("owner/name", "/a/folder", None):
        assert public_name(other) == own_name(other, BUILT_IN_FINGERPRINT) == other


def test_a_folder_is_no_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    for name in ("/owner/name", "owner", "a/b/c", "./owner/name", None):
        assert not is_hub_id(name)
    Path("owner/name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_what_is_written_names_the_hubs_model_and_is_read_as_the_built_in_one(tmp_path: Path) -> None:
    for folder in (path.parent for path in SHIPPED.glob("*/adapter_config.json")):
        assert PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == ORIGINAL
    expert = Expert.read(SHIPPED / "sums")
    assert expert.base == BUILT_IN
    assert shipped_library(ORIGINAL) == SHIPPED
    (0.5 * expert).write(tmp_path / "half")
    written = PeftConfig.from_pretrained(str(tmp_path / "half"))
    assert written.base_model_name_or_path == ORIGINAL
    assert Expert.read(tmp_path / "half").base == BUILT_IN


def test_folders_that_name_the_built_in_base_are_read_as_ever(tmp_path: Path) -> None:
    Expert.read(SHIPPED / "sums").write(tmp_path / "old")
    config = tmp_path / "old" / "adapter_config.json"
    config.write_text(config.read_text().replace(ORIGINAL, BUILT_IN))
    assert Expert.read(tmp_path / "old").base == BUILT_IN


@pytest.mark.long
def test_peft_loads_what_is_shipped_and_exported_where_the_hubs_model_is(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    smollm2_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's cache has a model of that name; plain PEFT asks for nothing else."""
    base, tokenizer = smollm2
    assert fingerprint(base) == BUILT_IN_FINGERPRINT
    repository = tmp_path / f"models--{ORIGINAL.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(smollm2_folder.resolve(), target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expert = Expert.read(SHIPPED / "stories")
    best_lora(base, expert)[0].write(tmp_path / "lora")
    ids = torch.tensor([tokenizer("Leo finds 8 stones.")["input_ids"]])
    with torch.no_grad():
        plain = base(ids).logits
        wanted = expert.attach(base).eval()(ids).logits
        for folder in (SHIPPED / "stories", tmp_path / "lora"):
            loaded = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
            torch.testing.assert_close(loaded(ids).logits, wanted, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, wanted, atol=0.1)
