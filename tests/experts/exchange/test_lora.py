"""A LoRA as factors: what PEFT makes of it, and that it comes back from its folder as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from experts.exchange.lora import Lora
from experts.exchange.lora_folder import read_lora
from experts.outside.errors import UserError

IDS = torch.arange(3, 43).view(2, 20)
MATRICES = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")


def make_lora(base: Any, ranks: tuple[int, int] = (3, 3), **kwargs: Any) -> Lora:
    generator = torch.Generator().manual_seed(0)
    shapes = [base.get_submodule(matrix).weight.shape for matrix in MATRICES]
    a = {m: torch.randn(k, n, generator=generator) for m, k, (_, n) in zip(MATRICES, ranks, shapes, strict=True)}
    b = {m: torch.randn(o, k, generator=generator) for m, k, (o, _) in zip(MATRICES, ranks, shapes, strict=True)}
    return Lora(a, b, base="tiny", **kwargs)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("ranks", "options"),
    [((3, 3), {}), ((3, 5), {}), ((3, 3), {"alpha": 4.5}), ((4, 4), {"alpha": 8, "rslora": True})],
    ids=str,
)
def test_attached_or_loaded_it_is_its_difference(
    ranks: tuple[int, int], options: dict[str, Any], tiny_model: Any, tmp_path: Path
) -> None:
    lora = make_lora(tiny_model, ranks, **options)
    base = logits(tiny_model)
    attached = lora.attach(tiny_model)
    found = logits(attached)
    assert not any(parameter.requires_grad for name, parameter in attached.named_parameters() if "lora_" in name)
    attached.unload()
    assert torch.equal(logits(tiny_model), base)

    lora.write(tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny_model, str(tmp_path / "lora"))
    assert torch.equal(logits(loaded), found)
    loaded.unload()

    with torch.no_grad():
        for matrix, k in lora.ranks.items():
            scaling = 1 if lora.alpha is None else lora.alpha / (k**0.5 if lora.rslora else k)
            tiny_model.get_submodule(matrix).weight += scaling * lora.b[matrix] @ lora.a[matrix]
    torch.testing.assert_close(logits(tiny_model), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("ranks", "options"), [((3, 3), {}), ((3, 5), {}), ((4, 4), {"alpha": 8, "rslora": True})], ids=str
)
def test_it_comes_back_as_it_was(
    ranks: tuple[int, int], options: dict[str, Any], tiny_model: Any, tmp_path: Path
) -> None:
    lora = make_lora(tiny_model, ranks, **options)
    lora.write(tmp_path / "lora")
    again = read_lora(tmp_path / "lora")
    assert (again.alpha, again.rslora, again.base, again.ranks) == (lora.alpha, lora.rslora, "tiny", lora.ranks)
    for matrix in MATRICES:
        assert torch.equal(again.a[matrix], lora.a[matrix])
        assert torch.equal(again.b[matrix], lora.b[matrix])
    with pytest.raises(UserError, match="exists already"):
        lora.write(tmp_path / "lora")


def test_matrices_may_have_alphas_of_their_own(tiny_model: Any, tmp_path: Path) -> None:
    lora = make_lora(tiny_model, alpha=6)
    lora.write(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {MATRICES[0]: 1}}))
    again = read_lora(tmp_path / "lora")
    for matrix, scale in zip(MATRICES, (1 / 3, 2), strict=True):
        torch.testing.assert_close(again.factors[matrix].b, scale * lora.b[matrix])


def test_what_is_no_plain_lora_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], r=4, use_dora=True)
    get_peft_model(tiny_model, config).save_pretrained(str(tmp_path / "dora"), save_embedding_layers=False)
    with pytest.raises(UserError, match="more than a LoRA: it has use_dora"):
        read_lora(tmp_path / "dora")

    folder = tmp_path / "lora"
    make_lora(tiny_model, alpha=6).write(folder)
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | {"lora_alpha": None}))
    with pytest.raises(UserError, match="damaged"):
        read_lora(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(document))
    tensors.popitem()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="damaged"):
        read_lora(folder)
