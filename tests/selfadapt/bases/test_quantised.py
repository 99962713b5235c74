"""Bases that are asked for in four or eight bits; what they do then is tested in `tests/experts/svf`."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from experts.outside.errors import UserError
from selfadapt import load_base
from selfadapt.recipes import override, read_recipe


@pytest.mark.parametrize(
    ("quantization", "kind", "attributes"),
    [
        ("nf4", Linear4bit, {"quant_type": "nf4", "compress_statistics": True}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, Linear4bit, {"quant_type": "fp4"}),
        ({"svd_rank": 8}, Linear4bit, {"quant_type": "nf4", "compress_statistics": True}),
        ("int8", Linear8bitLt, {}),
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "q_proj"]}, Linear8bitLt, {}),
    ],
)
def test_linear_layers_are_quantised(tiny_folder: Path, quantization: Any, kind: Any, attributes: Any) -> None:
    base, _ = load_base(tiny_folder, quantization=quantization)
    layer: Any = base.get_submodule("model.layers.1.mlp.down_proj")
    assert type(layer) is kind
    assert type(base.get_output_embeddings()) is torch.nn.Linear
    assert not base.training
    assert {name: getattr(layer.weight, name) for name in attributes} == attributes
    if kind is Linear4bit:
        assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("nf5", r"quantization 'nf5'.*nf4"),
        ({"load_in_4bits": True}, r"argument of quantization 'load_in_4bits'.*load_in_4bit"),
        ({"load_in_4bit": 4}, "bitsandbytes does not take quantization"),
        ({"bnb_4bit_quant_type": "nf4"}, "must be one of nf4, nf4-svd, int8, or have load_in_4bit"),
        ({"load_in_8bit": True, "svd_rank": 4}, "svd_rank .* beside four bits"),
        ({"load_in_4bit": True, "svd_rank": -1}, "svd_rank .* not -1"),
        ({"load_in_4bit": True, "svd_rank": True}, "svd_rank .* not True"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "unknown bnb_4bit_quant_type 'nf5'; did you mean 'nf4'"),
        ({"load_in_4bit": True, "llm_int8_skip_modules": ["q_proj"]}, "add 'lm_head' to llm_int8_skip_modules"),
        (["nf4"], "must be one of nf4, nf4-svd, int8, or a mapping, not"),
        (4, "must be one of nf4, nf4-svd, int8, or a mapping, not 4"),
    ],
)
def test_what_means_nothing_is_refused(tiny_folder: Path, quantization: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load_base(tiny_folder, quantization=quantization)
    assert "\n" not in str(refusal.value)


def test_without_bitsandbytes_the_command_is_said(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr(
        "selfadapt.bases.quantised.find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(UserError, match=r"needs bitsandbytes, which is not installed: pip install .*quantised"):
        load_base(tiny_folder, quantization="nf4")


def test_recipes_and_the_command_line_say_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = "domain: {kind: gsm8k}\ntraining: {learning_rate: 0.01, steps: 4}\nbase: {quantization: nf4}\n"
    path.write_text(text, encoding="utf-8")
    recipe = read_recipe(path)
    assert recipe.base.options() == recipe.to_dict()["base"] == {"quantization": "nf4"}
    assert override(recipe, ["--base.quantization", "int8"], prog="train").base.quantization == "int8"
    path.write_text(text.replace("nf4", "{load_in_4bit: true, bnb_4bit_quant_type: fp4}"), encoding="utf-8")
    assert read_recipe(path).base.options() == {"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}
