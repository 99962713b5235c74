from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from experts.outside.errors import UserError
from experts.text_to_lora.shapes import Matrix, check_same_matrices, read_matrices


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*\.mlp\.(up|down)_proj"])
def test_the_config_alone_tells_what_the_weights_would(
    targets: Any, tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_weights = read_matrices(tiny_model, targets)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: self.weight.is_meta or pytest.fail("real weights"))
    assert read_matrices(tiny_model.config, targets) == from_weights
    assert all("lm_head" not in matrix.name for matrix in from_weights)
    weight = tiny_model.get_submodule(from_weights[0].name).weight
    assert weight.shape == (from_weights[0].out_features, from_weights[0].in_features)


def test_conv1d_stores_its_weight_the_other_way_round() -> None:
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16)
    matrices = read_matrices(config, ["c_attn"])
    assert matrices[1] == Matrix("transformer.h.1.attn.c_attn", 24, 8)
    assert (matrices[1].layer, matrices[1].module) == (1, "attn.c_attn")
    assert read_matrices(AutoModelForCausalLM.from_config(config), ["c_attn"]) == matrices


def test_the_experts_of_a_layer_are_modules_of_their_own() -> None:
    names = [f"model.layers.3.mlp.experts.{number}.up_proj" for number in range(2)]
    first, second = (Matrix(name, 4, 4) for name in names)
    assert first.layer == second.layer == 3
    assert first.module != second.module


def test_targets_that_mean_nothing_are_refused(tiny_model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="no linear layer"):
        read_matrices(tiny_model, ["query"])


def test_another_base_is_refused_with_the_first_difference() -> None:
    wanted = [Matrix("layers.0.q", 4, 4), Matrix("layers.1.q", 4, 4)]
    check_same_matrices(wanted, list(wanted))
    with pytest.raises(UserError, match=r"another base: it expects layers.1.q \[4, 4\], but this one has none"):
        check_same_matrices(wanted, wanted[:1])
    with pytest.raises(UserError, match=r"layers.1.q \[4, 4\], but this one has \[8, 4\]"):
        check_same_matrices(wanted, [wanted[0], Matrix("layers.1.q", 8, 4)])
    with pytest.raises(UserError, match="2 matrices, but this one has 3"):
        check_same_matrices(wanted, [*wanted, Matrix("layers.2.q", 4, 4)])


def test_nothing_is_left_on_the_meta_device(tiny_model: PreTrainedModel) -> None:
    read_matrices(tiny_model.config, "all-linear")
    assert torch.empty(1).device.type == "cpu"
