"""How a mixture runs one layer: on one merged weight for all rows, or on each row's own path through the factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experts.svf.layer import SVFLinear
from experts.svf.mixing import Batch, LayerMixture, Order


def shared(layer: SVFLinear, names: Sequence[str], alpha: Tensor, matrix: str) -> LayerMixture:
    """Runs one mixture α [K] for all rows: on a merged weight, or in factor space beside a quantised weight."""
    # Outside inference mode, so that any later forward may use it.
    with torch.inference_mode(False), torch.no_grad():
        if layer.quantised:
            return rows(layer, names, alpha[None].clone(), matrix, None, None)
        return LayerMixture(weight=_merged(layer, names, alpha.clone()))


def _merged(layer: SVFLinear, names: Sequence[str], alpha: Tensor) -> Tensor | None:
    """W + U diag(s·δ) Vᵀ + Σ_k α_k B_k A_k [m, n] for one mixture α [K]; None if nothing in it adapts the layer."""
    delta = _delta(layer, names, alpha[None])
    difference = None if delta is None else layer.difference(delta[0])
    for name, part in zip(names, alpha.tolist(), strict=True):
        if part and name in layer.svf_loras:
            a, b = (factor.to(layer.z_dtype) for factor in layer.svf_loras[name])
            own = (part * b) @ a
            difference = own if difference is None else difference.add_(own)
    return None if difference is None else layer.merge_difference(difference)


def rows(
    layer: SVFLinear, names: Sequence[str], alpha: Tensor, matrix: str, batch: Batch | None, order: Order | None
) -> LayerMixture:
    """Runs a mixture for each row of a batch, α [B, K], in factor space."""
    loras = tuple(
        (alpha[:, k : k + 1].to(factors.a.device), factors)
        for k, name in enumerate(names)
        if (factors := layer.svf_loras.get(name)) is not None and alpha[:, k].any()
    )
    delta = _delta(layer, names, alpha)  # [B, r]
    if delta is None:
        return LayerMixture(loras=loras, name=matrix, batch=batch, order=order) if loras else LayerMixture()
    # A row without experts must be the base bit for bit, which the factors alone are not.
    whole = layer.whole_in_factors and bool(alpha.any(1).all())
    scale = layer.svf_s * (delta + 1 if whole else delta)
    return LayerMixture(None, scale, layer.svf_u, layer.svf_vt, loras, whole, matrix, batch, order)


def _delta(layer: SVFLinear, names: Sequence[str], alpha: Tensor) -> Tensor | None:
    """δ = Σ_k α_bk (z_k − 1) [B, r] of a layer; None if no expert adapts it or none has a part."""
    own = [k for k, name in enumerate(names) if name in layer.svf_z]
    if not alpha[:, own].any():
        return None
    deltas = layer.deltas([names[k] for k in own])  # [K', r]
    return alpha[:, own].to(deltas) @ deltas
