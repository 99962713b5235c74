"""The arithmetic of one layer, against autograd and finite differences, and what a merged weight may never do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from experts.svf import SVFConfig, SVFLinear

SHAPES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5)}  # out_features, in_features


def make_layer(
    m: int, n: int, *, rank: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> SVFLinear:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(n, m).to(dtype))
    peft_model = get_peft_model(model, SVFConfig(target_modules=["0"], rank=rank))
    return peft_model.base_model.model[0]


def set_z(layer: SVFLinear, values: Tensor, name: str = "default") -> None:
    with torch.no_grad():
        layer.svf_z[name].copy_(values)


def random_z(layer: SVFLinear, name: str = "default") -> Tensor:
    z = torch.linspace(0.5, 1.7, len(layer.svf_z[name]), dtype=layer.svf_z[name].dtype)
    set_z(layer, z, name)
    return z


def composed(layer: SVFLinear, z: Tensor) -> Tensor:
    """W' = W + U diag(s·(z − 1)) Vᵀ, straight from the definition and independent of the cache."""
    weight = layer.pristine_weight
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    r = len(z)
    return weight + u[:, :r] @ torch.diag(s[:r] * (z - 1)) @ vt[:r]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_z_of_one_is_the_base_bit_for_bit(dtype: torch.dtype, rank: int | None, grad: bool) -> None:
    layer = make_layer(7, 4, rank=rank, dtype=dtype)
    x = torch.randn(3, 4).to(dtype)
    with torch.set_grad_enabled(grad):
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_forward_is_the_composed_weight(shape: str, rank: int | None, grad: bool) -> None:
    layer = make_layer(*SHAPES[shape], rank=rank, dtype=torch.float64)
    z = random_z(layer)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        y = layer(x)
    torch.testing.assert_close(y, F.linear(x, composed(layer, z), layer.base_layer.bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 3])
def test_gradients_by_finite_differences(shape: str, rank: int | None) -> None:
    layer = make_layer(*SHAPES[shape], rank=rank, dtype=torch.float64)
    random_z(layer)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64, requires_grad=True)
    z = layer.svf_z["default"].detach().clone().requires_grad_(True)

    def forward(x: Tensor, z: Tensor) -> Tensor:
        layer.invalidate()
        return torch.func.functional_call(layer, {"svf_z.default": z}, (x,))

    assert torch.autograd.gradcheck(forward, (x, z))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 3])
def test_gradients_equal_autograd_through_the_factors(shape: str, rank: int | None) -> None:
    layer = make_layer(*SHAPES[shape], rank=rank, dtype=torch.float64)
    reference_z = random_z(layer).clone().requires_grad_(True)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64, requires_grad=True)
    reference_x = x.detach().clone().requires_grad_(True)
    target = torch.randn(2, 3, layer.out_features, dtype=torch.float64)

    (layer(x) * target).sum().backward()
    (F.linear(reference_x, composed(layer, reference_z), layer.base_layer.bias) * target).sum().backward()

    torch.testing.assert_close(layer.svf_z["default"].grad, reference_z.grad)
    torch.testing.assert_close(x.grad, reference_x.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    layer = make_layer(7, 4, dtype=torch.float64)
    random_z(layer)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    plain = layer.svf_z["default"].grad.clone(), x.grad.clone()
    layer.zero_grad()
    x.grad = None
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close((layer.svf_z["default"].grad, x.grad), plain)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_base_may_change_what_a_layer_gave_in_place(rank: int | None) -> None:
    layer = make_layer(5, 5, rank=rank)
    random_z(layer)
    x = torch.randn(2, 3, 5)
    gradients = []
    for y in (layer(x).add_(1), layer(x) + 1):
        (gradient,) = torch.autograd.grad(y.square().sum(), layer.svf_z["default"])
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_training_keeps_no_dense_gradient() -> None:
    layer = make_layer(7, 4)
    layer(torch.randn(3, 4)).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert layer.svf_z["default"].grad.shape == (4,)


def test_small_changes_survive_a_bfloat16_base() -> None:
    """|z − 1| = 0.002 in a merged bfloat16 weight loses more than half of the difference; training must not."""
    layer = make_layer(64, 48, dtype=torch.bfloat16)
    set_z(layer, torch.full((48,), 1.002))
    x = torch.randn(8, 48).bfloat16()
    wanted = 0.002 * (x.double() @ layer.pristine_weight.double().T)
    hidden = F.linear(x, layer.svf_vt).double() * (layer.svf_s * 0.002).double()
    exact = hidden @ layer.svf_u.double().T

    def error(difference: Tensor) -> float:
        return ((difference - wanted).norm() / wanted.norm()).item()

    merged = layer.merge_delta(layer.delta(["default"]).detach()).double() - layer.pristine_weight.double()
    assert error(x.double() @ merged.T) > 0.3
    assert error(exact) < 0.02
    # The layer adds that difference to the base's own output, training or sampling.
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            factored = F.linear(
                (F.linear(x, layer.svf_vt) * (layer.svf_s * layer.delta(["default"]))).bfloat16(), layer.svf_u
            )
            torch.testing.assert_close(layer(x), layer.base_layer(x) + factored)


def test_autocast_trains_by_differences() -> None:
    layer = make_layer(64, 48)
    set_z(layer, torch.full((48,), 1.002))
    x = torch.randn(8, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        difference = y.double() - layer.base_layer(x).double()
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.svf_z["default"].grad.dtype == torch.float32
    assert difference.abs().max() > 0
    assert layer._merged_weight is None  # rounded by autocast, it would mostly swallow the difference


# --- a merged weight never goes stale ---


def merged_equals_definition(layer: SVFLinear) -> bool:
    x = torch.eye(layer.in_features)
    with torch.no_grad():
        z = layer.svf_z[layer.active_adapters[0]]
        wanted = F.linear(x, composed(layer, z), layer.base_layer.bias)
        return torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_training_between_two_frozen_runs_renews_the_merged_weight(fused: bool) -> None:
    layer = make_layer(7, 4)
    z = layer.svf_z["default"]
    optimizer = torch.optim.AdamW([z], lr=0.3, fused=fused)
    for _ in range(2):
        layer.requires_grad_(False)
        assert merged_equals_definition(layer)
        z.requires_grad_(True)
        for _ in range(3):
            layer(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
    layer.requires_grad_(False)
    assert merged_equals_definition(layer)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rank", [None, 3])
def test_an_optimizer_step_renews_the_merged_weight(fused: bool, rank: int | None) -> None:
    layer = make_layer(7, 4, rank=rank)
    optimizer = torch.optim.AdamW([layer.svf_z["default"]], lr=0.3, fused=fused)
    for _ in range(3):
        assert merged_equals_definition(layer)
        layer(torch.randn(3, 4)).square().sum().backward()
        before = layer.svf_z["default"].detach().clone()
        optimizer.step()
        assert not torch.equal(layer.svf_z["default"], before)
        assert merged_equals_definition(layer)


def test_the_fused_optimizer_does_not_count_versions() -> None:
    """The reason for the explicit invalidation. If this fails one day, the optimiser hook is no longer needed."""
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.ones(4)
    version = parameter._version
    torch.optim.AdamW([parameter], lr=0.1, fused=True).step()
    assert parameter._version == version


def test_a_load_renews_the_merged_weight() -> None:
    layer = make_layer(7, 4)
    assert merged_equals_definition(layer)
    layer.load_state_dict({"svf_z.default": torch.full((4,), 2.0)}, strict=False)
    assert merged_equals_definition(layer)
    layer.load_state_dict({"svf_z.default": torch.full((4,), 0.5)}, strict=False, assign=True)
    assert merged_equals_definition(layer)


def test_an_adapter_switch_renews_the_merged_weight() -> None:
    layer = make_layer(7, 4)
    layer.update_layer("other", None, False)
    random_z(layer)
    set_z(layer, torch.full((4,), 0.25), "other")
    for name in ("default", "other", "default"):
        layer.set_adapter(name)
        assert merged_equals_definition(layer)


def test_data_writes_need_invalidate() -> None:
    layer = make_layer(7, 4)
    assert merged_equals_definition(layer)
    layer.svf_z["default"].data.mul_(2)
    assert not merged_equals_definition(layer)
    layer.invalidate()
    assert merged_equals_definition(layer)


def test_a_weight_merged_in_inference_mode_can_be_trained_on() -> None:
    layer = make_layer(7, 4)
    with torch.inference_mode():
        layer(torch.randn(3, 4))
    layer(torch.randn(3, 4)).sum().backward()
    assert layer.svf_z["default"].grad is not None


# --- several experts, merging in place, dtypes ---


def test_active_experts_add_their_differences_across_ranks() -> None:
    layer = make_layer(7, 4)
    layer.update_layer("small", 2, False)
    a, b = random_z(layer), random_z(layer, "small")
    layer.set_adapter(["default", "small"])
    z = a.clone()
    z[:2] += b - 1
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x), F.linear(x, composed(layer, z), layer.base_layer.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unmerge_restore_every_bit(dtype: torch.dtype) -> None:
    layer = make_layer(7, 4, dtype=dtype)
    original = layer.base_layer.weight.detach().clone()
    random_z(layer)
    x = torch.randn(3, 4).to(dtype)
    with torch.no_grad():
        unmerged = layer(x)
        for _ in range(50):
            layer.merge()
            torch.testing.assert_close(layer(x), unmerged, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=2e-2)
            layer.unmerge()
    assert torch.equal(layer.base_layer.weight, original)


def test_safe_merge_refuses_what_is_not_finite() -> None:
    layer = make_layer(7, 4)
    original = layer.base_layer.weight.detach().clone()
    set_z(layer, torch.full((4,), float("inf")))
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, original)
    assert not layer.merged


def test_conv1d_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    conv = Conv1D(7, 4)
    layer = get_peft_model(nn.Sequential(conv), SVFConfig(target_modules=["0"])).base_model.model[0]
    x = torch.randn(2, 3, 4)
    assert torch.equal(layer(x), conv(x))
    z = random_z(layer)
    wanted = F.linear(x, composed(layer, z), conv.bias)
    torch.testing.assert_close(layer(x), wanted)
    layer.merge()
    torch.testing.assert_close(layer(x), wanted)
    layer.unmerge()
    assert layer.get_delta_weight("default").shape == conv.weight.shape


def test_z_and_s_stay_in_float32_whatever_the_model_is_cast_to() -> None:
    layer = make_layer(7, 4)
    set_z(layer, torch.full((4,), 1.002))
    s = layer.svf_s.clone()
    layer.to(torch.bfloat16)
    assert layer.svf_u.dtype == layer.base_layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.svf_z["default"], torch.full((4,), 1.002))
    assert torch.equal(layer.svf_s, s)


def test_only_z_is_saved() -> None:
    assert [key for key in make_layer(7, 4).state_dict() if key.startswith("svf")] == ["svf_z.default"]
