"""PEFT's further verbs on SVF adapters: right, or refused in one line that names SVF or what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear

IDS = torch.arange(3, 43).view(2, 20)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def layers(model: nn.Module) -> list[SVFLinear]:
    return [module for module in model.modules() if isinstance(module, SVFLinear)]


@pytest.fixture
def model(tiny_model: LlamaForCausalLM) -> PeftModel:
    """Two random experts that share some matrices: "a" of rank 8 everywhere, "b" of rank 16 in a part."""
    model = get_peft_model(tiny_model, SVFConfig(rank=8), "a")
    model.add_adapter("b", SVFConfig(target_modules=["q_proj", "down_proj"], rank=16, description="Small."))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in layers(model):
            for z in layer.svf_z.values():
                z.add_(0.3 * torch.randn(z.shape))
    return model.eval()


def mixed(model: PeftModel, weights: list[float]) -> Tensor:
    with model.base_model.mixed(["a", "b"], torch.tensor([weights] * len(IDS))):
        return logits(model)


@pytest.mark.parametrize("combination_type", ["linear", "cat", "svd"])
def test_a_weighted_adapter_is_the_mixture(
    model: PeftModel, combination_type: str, tmp_path: Path, tiny_model: LlamaForCausalLM
) -> None:
    wanted = mixed(model, [0.7, -0.3])
    model.add_weighted_adapter(["a", "b"], [0.7, -0.3], "mixture", combination_type)
    assert model.active_adapters == ["a"]  # as PEFT's own
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.endswith(".mixture"))
    model.set_adapter("mixture")
    torch.testing.assert_close(logits(model), wanted)
    model.save_pretrained(str(tmp_path), selected_adapters=["mixture"])
    again = PeftModel.from_pretrained(model.unload(), str(tmp_path / "mixture"))
    torch.testing.assert_close(logits(again), wanted)
    assert again.peft_config["default"].description == "The mixture 0.7 · a + -0.3 · b."


def test_weighted_adapters_that_cannot_be_are_refused_and_leave_nothing(model: PeftModel) -> None:
    wanted = logits(model)
    refused: list[tuple[list[Any], dict[str, Any], str]] = [
        ([["a", "c"], [0.5, 0.5], "d"], {}, "unknown expert 'c'"),
        ([["a", "b"], [0.5, 0.5], "b"], {}, "there is an adapter 'b' already"),
        ([["a", "b"], [0.5], "d"], {}, "a finite weight for each adapter"),
        ([["a"], [float("nan")], "d"], {}, "a finite weight for each adapter"),
        ([[], [], "d"], {}, "a finite weight for each adapter"),
        ([["a"], ["1"], "d"], {}, "a finite weight for each adapter"),
        ([["a"], [None], "d"], {}, "a finite weight for each adapter"),
        ([["a"], 1.0, "d"], {}, "a finite weight for each adapter"),
        (["ab", [0.5, 0.5], "d"], {}, "adapters must be a list of names"),
        ([None, [1.0], "d"], {}, "adapters must be a list of names"),
        ([["a", "b"], [0.5, 0.5], "d", "ties"], {"density": 0.5}, "SVF has no combination_type 'ties'"),
        ([["a", "b"], [0.5, 0.5], "d", "svd"], {"svd_rank": 4}, "SVF mixes exactly and has no use for svd_rank"),
        ([["a", "b"], [0.5, 0.5], "d.e"], {}, "cannot name an adapter"),
    ]
    for args, options, message in refused:
        with pytest.raises(UserError, match=message):
            model.add_weighted_adapter(*args, **options)
    assert list(model.peft_config) == ["a", "b"]
    assert torch.equal(logits(model), wanted)


def test_the_weights_of_an_adapter_that_is_named_twice_are_added(model: PeftModel) -> None:
    model.add_weighted_adapter(["a", "b", "a"], [0.5, 1.0, 0.25], "mixture")
    model.set_adapter("mixture")
    torch.testing.assert_close(logits(model), mixed(model, [0.75, 1.0]))


def test_an_adapter_that_does_not_exist_cannot_become_active(model: PeftModel) -> None:
    for given in ("c", ["a", "c"]):
        with pytest.raises(UserError, match="unknown expert 'c'"):
            model.base_model.set_adapter(given)
    assert model.base_model.active_adapters == ["a"]


def test_scales_are_weights_of_a_mixture(model: PeftModel) -> None:
    plain = logits(model)
    for layer in layers(model):
        layer.set_scale("a", 0.5)
        layer.set_scale("nobody", 3.0)  # as PEFT's LoRA has it
    torch.testing.assert_close(logits(model), mixed(model, [1.0, 0.0]))
    assert not torch.allclose(logits(model), plain)
    for layer in layers(model):
        layer.scale_layer(4.0)  # 2 in all
    doubled = logits(model)
    merged = model.base_model
    merged.merge_adapter()
    torch.testing.assert_close(logits(model), doubled)
    merged.unmerge_adapter()
    for layer in layers(model):
        layer.unscale_layer(4.0)
    for layer in layers(model):
        layer.unscale_layer()
    assert torch.equal(logits(model), plain)
    with model.base_model.mixed(["a"], torch.tensor([[2.0]] * len(IDS))):
        torch.testing.assert_close(logits(model), doubled)


def test_a_scaled_expert_trains_under_its_scale(model: PeftModel) -> None:
    for layer in layers(model):
        layer.set_scale("a", 0.5)
    model.set_adapter("a")
    model(input_ids=IDS, labels=IDS).loss.backward()
    halves = [layer.svf_z["a"].grad.clone() for layer in layers(model)]
    model.zero_grad()
    with torch.no_grad():
        for layer in layers(model):  # the same weights by z alone
            layer.set_scale("a", 1.0)
            layer.svf_z["a"].copy_(1 + 0.5 * (layer.svf_z["a"] - 1))
    model(input_ids=IDS, labels=IDS).loss.backward()
    for layer, half in zip(layers(model), halves, strict=True):
        torch.testing.assert_close(0.5 * layer.svf_z["a"].grad, half)


def test_deleting_an_adapter_leaves_the_others(model: PeftModel) -> None:
    model.set_adapter("b")
    wanted = logits(model)
    for layer in layers(model):
        layer.set_scale("a", 0.5)
    model.delete_adapter("a")
    assert (list(model.peft_config), model.active_adapters) == (["b"], ["b"])
    assert torch.equal(logits(model), wanted)
    assert not any(layer.svf_scales for layer in layers(model))
    with pytest.raises(ValueError, match="a does not exist"):
        model.delete_adapter("a")
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("b")


def test_several_active_adapters_are_their_sum(model: PeftModel) -> None:
    wanted = mixed(model, [1.0, 1.0])
    model.base_model.set_adapter(["a", "b"])  # PEFT's outer model takes one name, of any method
    torch.testing.assert_close(logits(model), wanted)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted)


def test_chosen_adapters_are_merged_whatever_is_active(model: PeftModel) -> None:
    wanted = mixed(model, [0.0, 1.0])
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match="unknown expert 'c'; known: a, b"):
            merge(adapter_names=["c"])
    torch.testing.assert_close(logits(model.merge_and_unload(adapter_names=["b"])), wanted)


def test_a_second_adapter_is_loaded_beside_a_first(model: PeftModel, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path))
    wanted = mixed(model, [0.0, 1.0])
    loaded = PeftModel.from_pretrained(model.unload(), str(tmp_path / "a"), adapter_name="a")
    loaded.load_adapter(str(tmp_path / "b"), "b")
    loaded.set_adapter("b")
    torch.testing.assert_close(logits(loaded), wanted)


def test_what_is_loras_alone_is_refused_by_name(model: PeftModel, tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    wanted = logits(model)
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="SVF"):
        hotswap_adapter(model, str(tmp_path / "b"), "a", torch_device="cpu")
    assert torch.equal(logits(model), wanted)
    plain = model.unload()
    with pytest.raises(ValueError, match="'SVF' is not compatible with the `PeftMixedModel`"):
        get_peft_model(plain, SVFConfig(), mixed=True)
    with pytest.raises(ValueError, match=r"SVF is not supported for mixed models"):
        PeftMixedModel.from_pretrained(plain, str(tmp_path / "a"))
    several = get_peft_model(plain, LoraConfig(target_modules=["q_proj"]), mixed=True)
    with pytest.raises(ValueError, match="'SVF' is not compatible with the `PeftMixedModel`"):
        several.add_adapter("svf", SVFConfig())
