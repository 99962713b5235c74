"""What an adapted linear layer and an adapted stack of matrices have in common: experts' z, and PEFT's verbs."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class SVFLayer(nn.Module, BaseTunerLayer):
    """Matrices whose singular values s [..., r] experts multiply by their z [..., r], one z an expert."""

    adapter_layer_names = ("svf_z",)
    other_param_names = ("svf_scales",)
    svf_z: nn.ParameterDict
    svf_scales: dict[str, float]  # of the adapters that have another than 1
    svf_s: Tensor  # [..., r]; None without experts

    @property
    def z_dtype(self) -> torch.dtype:
        """float32; float64 only where the base has it, to check the arithmetic."""
        raise NotImplementedError

    def carries(self, name: str) -> bool:
        """Whether an expert of this name adapts the layer."""
        return name in self.svf_z

    def decompose(self) -> None:
        """Loads or computes the factors, as many as the experts of the layer need. Cheap when they are there."""
        raise NotImplementedError

    def deltas(self, adapter_names: list[str]) -> Tensor:
        """c_k (z_k − 1) of each expert [K, ..., r] with its scale c_k, zero where one of a smaller rank has nothing."""
        rank = self.svf_s.shape[-1]
        deltas = [F.pad(self.svf_z[name] - 1, (0, rank - self.svf_z[name].shape[-1])) for name in adapter_names]
        scaled = [self.svf_scales.get(name, 1.0) * each for name, each in zip(adapter_names, deltas, strict=True)]
        return torch.stack(scaled if self.svf_scales else deltas)

    def delta(self, adapter_names: list[str]) -> Tensor:
        """δ = Σ_k c_k (z_k − 1) [..., r] of at least one expert."""
        return self.deltas(adapter_names).sum(0)

    def set_scale(self, adapter: str, scale: float) -> None:
        """PEFT's name for the share c in 1 + c (z − 1) that an adapter has in this layer; it is not saved."""
        if adapter not in self.svf_z:
            return
        self.svf_scales.pop(adapter, None)
        if scale != 1:
            self.svf_scales[adapter] = float(scale)
        self.invalidate()

    def scale_layer(self, scale: float) -> None:
        """Multiplies the scales of the active adapters."""
        for name in self.active_adapters:
            self.set_scale(name, scale * self.svf_scales.get(name, 1.0))

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divides the scales of the active adapters, or sets them to 1."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.svf_scales.get(name, 1.0) / scale)

    def enable_adapters(self, enabled: bool) -> None:
        """Switches between the experts and the base. What is frozen stays frozen; PEFT's own would thaw it."""
        self._disable_adapters = not enabled

    def invalidate(self) -> None:
        """Forgets what was made of z. Needed only after z was changed in place through `.data`."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `model.to(bfloat16)` and the like: z and s stay in float32 and only follow the device.
        kept = {name: z.data for name, z in self.svf_z.items()}
        s = self.svf_s
        super()._apply(fn, recurse)
        for name, data in kept.items():
            z = self.svf_z[name]
            if z.dtype != data.dtype and not z.is_meta:
                z.data = data.to(z.device, self.z_dtype)
        if s is not None and self.svf_s is not None:
            self.svf_s = s.to(self.svf_s.device, self.z_dtype)
        return self

    def __repr__(self) -> str:
        return "svf." + super().__repr__()
