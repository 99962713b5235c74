"""The PEFT verbs that SVF implements itself: a weighted adapter is a mixture, z = 1 + Σ_k w_k (z_k − 1), and exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from experts.outside.errors import UserError, short, unknown
from experts.svf.config import SVFConfig
from experts.svf.layer import SVFLinear
from experts.svf.names import plain_modules
from experts.svf.scaled import SVFLayer
from experts.svf.stacks import SVFStack

EXACT = ("linear", "cat", "svd")


class PeftVerbs(BaseTuner):
    """What PEFT's users do with existing adapters."""

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
        **others: Any,
    ) -> None:
        """Adds the mixture of some adapters as another adapter, frozen.

        Args:
            adapters: K experts of this model.
            weights: w [K]; those of an adapter that is named more than once are added.
            combination_type: "linear", "cat" or "svd", which are the same because all share their singular vectors.
            others: PEFT's arguments for other types.

        Raises:
            UserError: if an expert does not exist or has modules of its own, the name is taken, or for another type.
        """
        if isinstance(adapters, str) or not isinstance(adapters, Sequence):
            raise UserError(f"adapters must be a list of names; got {short(adapters)}")
        self._check_known(adapters)
        if adapter_name in self.peft_config:
            raise UserError(f"there is an adapter {adapter_name!r} already; delete it first, or choose another name")
        layers = {name: m for name, m in plain_modules(self.model).items() if isinstance(m, SVFLayer)}
        configs: Any = [self.peft_config[name] for name in adapters]
        self.peft_config[adapter_name] = _config(layers, configs, adapters, weights, combination_type, others)
        try:
            self.inject_adapter(self.model, adapter_name)
        except UserError:
            del self.peft_config[adapter_name]
            raise
        _fill_in(layers, adapters, weights, adapter_name)

    def set_adapter(self, adapter_name: str | list[str], *args: Any, **options: Any) -> None:
        self._check_known([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, *args, **options)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._check_known(adapter_names or [])
        self._check_mergeable()
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        self._check_known(adapter_names or [])
        self._check_mergeable()
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _check_mergeable(self) -> None:
        for module in self.model.modules():
            if isinstance(module, SVFLinear):
                module.check_mergeable()

    def _check_known(self, names: Sequence[str]) -> None:
        """Raises UserError for a name that no adapter has; PEFT would silently merge nothing, or run the base."""
        for name in names:
            if name not in self.peft_config:
                raise unknown("expert", name, self.peft_config)


def _config(
    layers: Mapping[str, SVFLayer],
    configs: Sequence[SVFConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    combination_type: str,
    others: Mapping[str, Any],
) -> SVFConfig:
    """The configuration of a mixture: every matrix that one of the adapters has, with the largest of their ranks.

    Args:
        layers: adapted matrix → its layer.
        configs: the adapters' configurations, K like the adapters and the weights.
        combination_type: PEFT's name for a way to combine; `others` has its further arguments.

    Raises:
        UserError: if there is nothing to mix, an adapter is more than its z, or another combination is asked for.
    """
    if combination_type not in EXACT:
        raise UserError(f"SVF has no combination_type {combination_type!r}: its mixtures are exact sums ('linear')")
    if asked := [name for name, value in others.items() if value is not None]:
        raise UserError(f"SVF mixes exactly and has no use for {', '.join(asked)}; leave it out")
    try:
        right = len(adapters) == len(weights) > 0 and all(map(math.isfinite, weights))
    except TypeError:
        right = False
    if not right:
        raise UserError(f"a mixture needs a finite weight for each adapter; got {weights!r} for {adapters!r}")
    for name, config in zip(adapters, configs, strict=True):
        if config.modules_to_save or config.trainable_token_indices:
            raise UserError(f"{name!r} was saved with modules of its own, which cannot be mixed")
    ranks = {
        matrix: max(layer.svf_z[name].shape[-1] for name in adapters if name in layer.svf_z)
        for matrix, layer in layers.items()
        if any(name in layer.svf_z for name in adapters)
    }
    shares = " + ".join(f"{weight:g} · {name}" for name, weight in zip(adapters, weights, strict=True))
    fingerprints = {config.base_fingerprint for config in configs}
    return replace(
        configs[0],
        target_modules=sorted(matrix for matrix in ranks if not isinstance(layers[matrix], SVFStack)),
        target_parameters=sorted(matrix for matrix in ranks if isinstance(layers[matrix], SVFStack)) or None,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank=None,
        # Longest first: a pattern counts for every matrix whose name ends like it.
        rank_pattern={matrix: ranks[matrix] for matrix in sorted(ranks, key=len, reverse=True)},
        base_fingerprint=fingerprints.pop() if len(fingerprints) == 1 else None,
        domain=None,
        description=f"The mixture {shares}.",
        inference_mode=True,
    )


def _fill_in(layers: Mapping[str, SVFLayer], adapters: Sequence[str], weights: Sequence[float], mixture: str) -> None:
    """Sets the existing adapter `mixture` to the sum of others, and freezes it."""
    share = dict.fromkeys(adapters, 0.0)
    for name, weight in zip(adapters, weights, strict=True):
        share[name] += float(weight)
    for layer in layers.values():
        own = [name for name in share if name in layer.svf_z]
        if own:
            z = layer.svf_z[mixture].requires_grad_(False)
            deltas = layer.deltas(own).detach()[..., : z.shape[-1]]  # [K', ..., r]
            z.data.copy_(1 + torch.tensordot(deltas.new_tensor([share[name] for name in own]), deltas, 1))
            layer.invalidate()
