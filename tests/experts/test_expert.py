"""Experts add up as their differences from the base do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model

from experts import Expert, SVFConfig
from experts.outside.errors import UserError
from experts.svf import SVFLinear

IDS = torch.arange(3, 23).view(2, 10)


@pytest.fixture
def experts(tiny_model: Any, tmp_path: Path) -> tuple[Expert, Expert]:
    """Two random experts of different ranks on different matrices."""
    configs = {
        "a": SVFConfig(target_modules=["q_proj", "up_proj"]),
        "b": SVFConfig(target_modules="all-linear", rank=4),
    }
    for seed, (name, config) in enumerate(configs.items()):
        model = get_peft_model(tiny_model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, SVFLinear):
                    layer.svf_z["default"].add_(0.5 * torch.randn(layer.svf_z["default"].shape, generator=generator))
        model.save_pretrained(str(tmp_path / name))
        model.unload()
    return Expert.read(tmp_path / "a"), Expert.read(tmp_path / "b")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_sum_that_is_written_is_the_mixture(experts: tuple[Expert, Expert], tiny_model: Any, tmp_path: Path) -> None:
    a, b = experts
    (0.5 * a + b).write(tmp_path / "sum")
    loaded = PeftModel.from_pretrained(tiny_model, str(tmp_path / "sum"))
    found = logits(loaded)
    model = PeftModel.from_pretrained(loaded.unload(), str(tmp_path / "a"), adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), "b")
    with model.base_model.mixed(["a", "b"], torch.tensor([[0.5, 1.0]]).expand(2, 2)):
        torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


def test_arithmetic_is_that_of_a_vector_space(experts: tuple[Expert, Expert]) -> None:
    a, b = experts

    def equal(left: Expert, right: Expert) -> None:
        assert left.z.keys() == right.z.keys()
        for matrix, z in left.z.items():
            torch.testing.assert_close(z, right.z[matrix])

    equal(a + b, b + a)
    equal(2 * (a + b), a * 2 + b + b)
    equal(sum([a, b, a]) / 3, (2 * a + b) / 3)
    for z in (a - a).z.values():
        torch.testing.assert_close(z, torch.ones_like(z))
    assert all(torch.equal(z, torch.ones_like(z)) for z in (0 * b).z.values())
    assert "a" in (0.5 * a + b).description
    matrix = next(iter(a.z))
    assert len((a + b).z[matrix]) == len(a.z[matrix]) > len(b.z[matrix]) == 4


def test_zero_times_an_expert_is_the_base_bit_for_bit(
    experts: tuple[Expert, Expert], tiny_model: Any, tmp_path: Path
) -> None:
    base = logits(tiny_model)
    (0 * experts[0]).write(tmp_path / "nothing")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model, str(tmp_path / "nothing"))), base)


def test_a_written_expert_loads_by_its_config_alone(
    experts: tuple[Expert, Expert], tiny_folder: Path, tmp_path: Path
) -> None:
    a, b = experts
    total = a + b
    Expert(total.z, base=str(tiny_folder), description="both").write(tmp_path / "both")
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "both"))
    layers = {name: m for name, m in model.base_model.model.named_modules() if isinstance(m, SVFLinear)}
    assert layers.keys() == total.z.keys()
    assert all(torch.equal(layer.svf_z["default"], total.z[name]) for name, layer in layers.items())
    assert Expert.read(tmp_path / "both").description == "both"


def test_what_does_not_add_up_is_refused(experts: tuple[Expert, Expert], tmp_path: Path) -> None:
    a, b = experts
    with pytest.raises(UserError, match="different bases"):
        a + Expert(b.z, fingerprint="another")
    with pytest.raises(TypeError):
        a * b  # type: ignore[operator]
    a.write(tmp_path / "twice")
    with pytest.raises(UserError, match="exists already"):
        a.write(tmp_path / "twice")
    for factor in (float("nan"), 1e39):
        with pytest.raises(UserError, match=r"cannot be written: .*svf_z has a number that is not finite"):
            (factor * a).write(tmp_path / "endless")
    assert not (tmp_path / "endless").exists()


def test_experts_can_be_compared(experts: tuple[Expert, Expert]) -> None:
    a, b = experts
    assert a == replace(a, z={matrix: z.clone() for matrix, z in a.z.items()})
    assert all(a != other for other in (b, 2 * a, replace(a, base="another"), None))
