"""SVF as one of PEFT's methods: everything a PEFT user expects of an adapter, on a small Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear

IDS = torch.arange(3, 43).view(2, 20)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def perturb(model: PeftModel, name: str = "default", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers(model):
            if name in layer.svf_z:
                z = layer.svf_z[name]
                z.add_(0.3 * torch.randn(z.shape, generator=generator))


def layers(model: nn.Module) -> list[SVFLinear]:
    return [module for module in model.modules() if isinstance(module, SVFLinear)]


def test_a_new_adapter_is_the_base_and_only_z_is_trainable(tiny_model: LlamaForCausalLM) -> None:
    wanted = logits(tiny_model)
    model = get_peft_model(tiny_model, SVFConfig(target_modules="all-linear"))
    assert torch.equal(logits(model), wanted)
    assert len(layers(model)) == 14  # all but the head
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith("svf_z.default") for name in trainable)
    assert len(trainable) == 14


def test_save_and_load_round_trip(tiny_model: LlamaForCausalLM, tiny_folder: Path, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=8))
    perturb(model)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "expert")
    for kwargs in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "expert"), **kwargs)
        torch.testing.assert_close(logits(loaded), wanted)
    config = PeftConfig.from_pretrained(str(tmp_path / "expert"))
    assert isinstance(config, SVFConfig)
    assert config.rank == 8


def test_transformers_loads_the_folder_by_itself(
    tiny_model: LlamaForCausalLM, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny_model.config._name_or_path = tiny_model.name_or_path = str(tiny_folder)
    model = get_peft_model(tiny_model, SVFConfig())
    perturb(model)
    model.save_pretrained(tmp_path / "expert")
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "expert"), dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_several_experts_on_one_model(tiny_model: LlamaForCausalLM) -> None:
    base = logits(tiny_model)
    model = get_peft_model(tiny_model, SVFConfig())
    model.add_adapter("small", SVFConfig(target_modules=["q_proj", "down_proj"], rank=4))
    perturb(model)
    perturb(model, "small", seed=1)
    default = logits(model)
    model.set_adapter("small")
    small = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.set_adapter("default")
    assert torch.equal(logits(model), default)
    assert not torch.equal(small, default)
    assert not torch.equal(small, base)
    model.delete_adapter("default")
    model.set_adapter("small")
    assert torch.equal(logits(model), small)


def test_a_larger_rank_beside_a_smaller_one_gets_its_factors(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=4))
    assert {len(layer.svf_s) for layer in layers(model)} == {4}
    model.add_adapter("full", SVFConfig())
    assert all(len(layer.svf_s) == min(layer.in_features, layer.out_features) for layer in layers(model))


def test_merge_unmerge_and_unload(tiny_model: LlamaForCausalLM) -> None:
    original = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    base = logits(tiny_model)
    model = get_peft_model(tiny_model, SVFConfig())
    perturb(model)
    wanted = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), wanted)
    model.unmerge_adapter()
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted)
    assert {name for name, _ in merged.named_parameters()} == set(original)


def test_unload_gives_the_base_back(tiny_model: LlamaForCausalLM) -> None:
    original = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    model = get_peft_model(tiny_model, SVFConfig())
    perturb(model)
    logits(model)
    plain = model.unload()
    assert all(torch.equal(p, original[name]) for name, p in plain.named_parameters())


def test_names_while_merged_are_those_of_the_plain_model(tiny_model: LlamaForCausalLM) -> None:
    """What TRL sends to a vLLM server: merged weights, without our parameters, under the base's own names."""
    plain = {name for name, _ in tiny_model.named_parameters()}
    model = get_peft_model(tiny_model, SVFConfig())
    model.merge_adapter()
    sent = {
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, _ in model.named_parameters()
        if model.base_model.prefix not in name
    }
    assert sent == plain


def test_layers_to_transform_with_all_linear(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(layers_to_transform=[1]))
    names = model.base_model.targeted_module_names
    assert len(names) == 7
    assert all(name.startswith("model.layers.1.") for name in names)


def test_a_rank_limited_expert_is_exactly_a_lora(tiny_model: LlamaForCausalLM) -> None:
    from peft import convert_to_lora

    model = get_peft_model(tiny_model, SVFConfig(rank=4))
    perturb(model)
    config, tensors = convert_to_lora(model, rank=4)
    assert isinstance(config, LoraConfig)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    scaling = config.lora_alpha / config.r
    torch.testing.assert_close(b @ a * scaling, layer.get_delta_weight("default"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_a_bfloat16_base_trains_z_in_float32(tiny_model: LlamaForCausalLM, gradient_checkpointing: bool) -> None:
    model = get_peft_model(tiny_model.bfloat16(), SVFConfig())
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for layer in layers(model):
        assert layer.svf_z["default"].dtype == layer.svf_z["default"].grad.dtype == torch.float32
        assert layer._merged_weight is None  # training on a bfloat16 base never merges


@pytest.mark.parametrize(
    "kwargs", [{"rank": 0}, {"target_modules": "a|b", "layers_to_transform": [1]}, {"layers_pattern": "h"}]
)
def test_configurations_that_cannot_work_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rank|layers_to_transform"):
        SVFConfig(**kwargs)


def test_what_svf_cannot_adapt_is_refused(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"embed_tokens is a Embedding"):
        get_peft_model(tiny_model, SVFConfig(target_modules=["embed_tokens"]))
    with pytest.raises(UserError, match="lm_head shares its weight with the input embeddings"):
        get_peft_model(tiny_model, SVFConfig(target_modules=["lm_head"]))
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    twins[2].weight = twins[0].weight
    for name in ("0", "2"):
        with pytest.raises(UserError, match=f"{name} shares its weight with another layer"):
            get_peft_model(twins, SVFConfig(target_modules=["1", name]))
    quantised = nn.Sequential(nn.Linear(4, 4))
    quantised[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=r"0 is quantised \(Linear, uint8\)"):
        get_peft_model(quantised, SVFConfig(target_modules=["0"]))
