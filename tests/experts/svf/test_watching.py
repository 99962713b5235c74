"""What a base's layers are given is seen, not assumed: whatever they are called, and however large they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.watching import linear_layers, orders_in
from tests.small_models import small_model

IDS = torch.arange(3, 27).view(3, 8)
WEIGHTS = torch.tensor([[1.0], [0.0], [0.5]])


class Routed(nn.Module):
    """A base of rows, tokens before rows, tokens end to end, and two experts that get a part of the tokens each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 12)
        self.before, self.across, self.flat, self.pooled = (nn.Linear(12, 12) for _ in range(4))
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.unused = nn.Linear(12, 12)
        self.chooses = nn.Linear(12, 2)

    def forward(self, input_ids: Tensor) -> CausalLMOutput:
        x = self.before(self.embed(input_ids))
        x = x + self.across(x.transpose(0, 1)).transpose(0, 1)
        x = x + self.pooled(x.mean(1))[:, None]
        flat = self.flat(x.reshape(-1, 12))
        chosen = self.chooses(flat).argmax(1)
        for index, expert in enumerate(self.experts):
            flat = torch.where((chosen == index)[:, None], flat.index_add(0, *_part(expert, flat, chosen, index)), flat)
        return CausalLMOutput(logits=flat.view_as(x))


def _part(expert: nn.Module, flat: Tensor, chosen: Tensor, index: int) -> tuple[Tensor, Tensor]:
    places = (chosen == index).nonzero()[:, 0]
    return places, expert(flat[places])


def routed() -> Routed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Routed().eval()


def perturb(model: Any) -> dict[str, SVFLinear]:
    layers = {name: m for name, m in linear_layers(model.get_base_model()).items() if isinstance(m, SVFLinear)}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            layer.svf_z["default"].add_(0.3 * torch.randn(layer.svf_z["default"].shape, generator=generator))
    return layers


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_where_the_rows_lie() -> None:
    orders = orders_in(routed())
    assert {name: order.axis for name, order in orders.items()} == {
        "before": 0,
        "across": 1,
        "flat": 0,
        "pooled": 0,
        "experts.0": None,
        "experts.1": None,
        "unused": None,
        "chooses": 0,
    }
    assert [name for name, order in orders.items() if not order.called] == ["unused"]


def test_all_linear_is_what_can_be_learned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = get_peft_model(routed(), SVFConfig())
    assert set(perturb(model)) == {"before", "across", "flat", "pooled", "experts.0", "experts.1"}
    assert "all-linear leaves out unused: not called when the base reads text" in caplog.text
    assert "all-linear leaves out chooses: no gradient, because" in caplog.text


@pytest.mark.parametrize("rows", [3, 8])
def test_rows_are_right_whatever_order_layers_see_them_in(rows: int) -> None:
    model = get_peft_model(routed(), SVFConfig(target_modules=["before", "across", "flat", "pooled"])).eval()
    perturb(model)
    ids, weights = torch.arange(3, 3 + 8 * rows).view(rows, 8) % 64, torch.linspace(0, 1, rows)[:, None]
    tuner: Any = model.base_model
    with tuner.mixed(["default"], weights):
        together = logits(model, ids)
    for row in range(rows):
        with tuner.mixed(["default"], weights[row : row + 1]):
            torch.testing.assert_close(together[row], logits(model, ids[row : row + 1])[0], atol=1e-5, rtol=1e-5)


def test_a_layer_that_a_router_sends_tokens_to_is_refused_by_name_and_runs_under_one_mixture() -> None:
    model = get_peft_model(routed(), SVFConfig(target_modules=["experts.0", "experts.1"])).eval()
    perturb(model)
    tuner: Any = model.base_model
    assert not tuner.runs_rows(["default"])
    for ids in (IDS, IDS[:, :1]):
        with tuner.mixed(["default"], WEIGHTS), pytest.raises(UserError, match=r"^experts\.\d cannot run rows"):
            logits(model, ids)
    with tuner.mixed(["default"], torch.ones(3, 1)):
        together = logits(model)
    torch.testing.assert_close(together, logits(model))


@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba"])
def test_a_weight_that_is_read_is_the_adapted_one_or_refused_by_name(name: str) -> None:
    base = small_model(name)
    plain = logits(base)
    model = get_peft_model(base, SVFConfig(target_modules=["dt_proj"], task_type="CAUSAL_LM")).eval()
    layers = perturb(model)
    model(input_ids=IDS).logits.square().sum().backward()
    for layer in layers.values():
        z = layer.svf_z["default"]
        assert z.grad is not None
        assert z.grad.any()
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 1e-3
    tuner: Any = model.base_model
    with tuner.mixed(["default"], torch.ones(3, 1)):
        torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
    assert not tuner.runs_rows(["default"])
    with (
        tuner.mixed(["default"], WEIGHTS),
        pytest.raises(UserError, match=r"dt_proj cannot run rows.*reads its weight"),
    ):
        logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_weight_that_is_read_is_that_of_its_z() -> None:
    """∂L/∂z = s · diag(Uᵀ (∂L/∂W') V)."""
    model = get_peft_model(small_model("Mamba"), SVFConfig(target_modules=["dt_proj"])).eval()
    layers = perturb(model)
    model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    model.merge_adapter()
    for layer in layers.values():
        layer.base_layer.weight.requires_grad_(True)
    model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    for layer in layers.values():
        wanted = layer.svf_s * (layer.svf_u.T @ layer.base_layer.weight.grad @ layer.svf_vt.T).diagonal()
        torch.testing.assert_close(layer.svf_z["default"].grad, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "router"), [("Llama4Text", "router"), ("Phimoe", "router")])
def test_a_router_is_left_out_and_refused_by_name(name: str, router: str) -> None:
    base = small_model(name)
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    assert not [matrix for matrix in linear_layers(base) if matrix.endswith(router) and matrix in perturb(model)]
    base = model.unload()
    if any(matrix.endswith(router) for matrix in linear_layers(base)):
        with pytest.raises(UserError, match=f"{router} is a .*Router, which does more than multiply by its weight"):
            get_peft_model(base, SVFConfig(target_modules=[router]))
