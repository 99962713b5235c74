"""Runs every row of a batch under its own adapter, with gradients for the adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experts.svf.decomposition import Factors, decompose, each_matrix
from experts.text_to_lora.network import AdapterNetwork, LowRank, Written


@contextmanager
def adapted_rows(
    base: nn.Module, written: Written, *, scaling: float = 1.0, factors: Mapping[str, Factors] | None = None
) -> Iterator[None]:
    """Within the block, row b of every batch [B, T, …] that passes through `base` is under adapter b.

        LoRA   y_b = W x_b + scaling · B_b (A_b x_b)
        z      y_b = W x_b + U (s·(z_b − 1)·(Vᵀ x_b))

    A and B each enter one batched product; nothing is repeated per token. A single adapter serves all rows.

    Args:
        base: a plain model; its own weights get no gradient from this.
        written: matrix name → adapters of B rows, or a single one.
        scaling: the LoRAs' scaling.
        factors: U, s and Vᵀ of the matrices, if z is applied.
    """
    handles = []
    try:
        for name, adapter in written.items():
            if isinstance(adapter, LowRank):
                hook = _lora_hook(adapter, scaling)
            else:
                assert factors is not None
                hook = _z_hook(adapter, factors[name])
            handles.append(base.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lora_hook(adapter: LowRank, scaling: float) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args  # [B, T, n]
        a, b = adapter.a.to(x.dtype), adapter.b.to(x.dtype)
        if len(a) == 1:
            return output + F.linear(F.linear(x, a[0]), b[0] * scaling)
        hidden = torch.bmm(x, a.transpose(1, 2))  # [B, T, r]
        return torch.baddbmm(output, hidden, b.transpose(1, 2), alpha=scaling)

    return hook


def _z_hook(z: Tensor, factors: Factors) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args  # [B, T, n]
        scale = factors.s[: z.shape[1]] * (z - 1)  # [B, r]
        hidden = F.linear(x, factors.vt[: z.shape[1]])  # [B, T, r]
        hidden = (hidden * scale[:, None]).to(x.dtype)
        return output + F.linear(hidden, factors.u[:, : z.shape[1]])

    return hook


def base_factors(base: nn.Module, network: AdapterNetwork) -> dict[str, Factors]:
    """U, s and Vᵀ of the matrices that a network writes z for; takes seconds if they are not in the cache."""
    rank = getattr(network.spec.output, "rank", None)
    weights: dict[str, Tensor] = {}
    for matrix in network.spec.matrices:
        module: Any = base.get_submodule(matrix.name)
        weights[matrix.name] = module.weight.T if isinstance(module, Conv1D) else module.weight
    device = next(iter(weights.values())).device
    factors = each_matrix(lambda weight: decompose(weight, rank), list(weights.values()), device)
    return dict(zip(weights, factors, strict=True))
