"""A mixture of adapters as one more adapter of the same model: z = 1 + Σ_k w_k (z_k − 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experts.outside.errors import UserError
from experts.svf.config import SVFConfig
from experts.svf.layer import SVFLinear

EXACT = ("linear", "cat", "svd")


def mixture_config(
    layers: Mapping[str, SVFLinear],
    configs: Sequence[SVFConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    combination_type: str,
    others: Mapping[str, Any],
) -> SVFConfig:
    """The configuration of a mixture: every matrix that one of the adapters has, with the largest of their ranks.

    Args:
        layers: adapted matrix → its layer.
        configs: of the adapters, K like them and the weights.
        combination_type: PEFT's name for a way to combine, and its further arguments in `others`.

    Raises:
        UserError: if there is nothing to mix, an adapter is more than its z, or another combination is asked for.
    """
    if combination_type not in EXACT:
        raise UserError(f"SVF has no combination_type {combination_type!r}: its mixtures are exact sums ('linear')")
    if asked := [name for name, value in others.items() if value is not None]:
        raise UserError(f"SVF mixes exactly and has no use for {', '.join(asked)}; leave it out")
    if not adapters or len(adapters) != len(weights) or not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"a mixture needs a finite weight for each adapter; got {weights!r} for {adapters!r}")
    for name, config in zip(adapters, configs, strict=True):
        if config.modules_to_save or config.trainable_token_indices:
            raise UserError(f"{name!r} was saved with modules of its own, which do not mix")
    ranks = {
        matrix: max(layer.svf_z[name].numel() for name in adapters if name in layer.svf_z)
        for matrix, layer in layers.items()
        if any(name in layer.svf_z for name in adapters)
    }
    shares = " + ".join(f"{weight:g} · {name}" for name, weight in zip(adapters, weights, strict=True))
    fingerprints = {config.base_fingerprint for config in configs}
    return replace(
        configs[0],
        target_modules=sorted(ranks),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank=None,
        # The longest first: a pattern counts for every matrix whose name ends like it.
        rank_pattern={matrix: ranks[matrix] for matrix in sorted(ranks, key=len, reverse=True)},
        base_fingerprint=fingerprints.pop() if len(fingerprints) == 1 else None,
        domain=None,
        description=f"The mixture {shares}.",
        inference_mode=True,
    )


def fill_in_mixture(
    layers: Mapping[str, SVFLinear], adapters: Sequence[str], weights: Sequence[float], mixture: str
) -> None:
    """Sets the adapter `mixture`, which is there, to the sum of others, and freezes it."""
    share = dict(zip(adapters, weights, strict=True))
    for layer in layers.values():
        own = [name for name in share if name in layer.svf_z]
        if own:
            z = layer.svf_z[mixture].requires_grad_(False)
            deltas = layer.deltas(own).detach()[:, : len(z)]  # [K', r]
            z.data.copy_(1 + deltas.new_tensor([share[name] for name in own]) @ deltas)
            layer.invalidate()
