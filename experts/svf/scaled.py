"""What an adapted linear layer and an adapted stack of matrices have in common: experts' z, and PEFT's verbs."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn


class SVFLayer(nn.Module, BaseTunerLayer):
    """Matrices whose singular values s [..., r] are multiplied by an expert's z [..., r]; each expert has one z."""

    adapter_layer_names = ("svf_z",)
    other_param_names = ("svf_scales",)
    svf_z: nn.ParameterDict
    svf_scales: dict[str, float]  # the scales other than 1, by adapter
    svf_s: Tensor  # [..., r]; None without experts
    merged_adapters: list[str]
    _pristine: Tensor | None = None  # the base's data while adapters are merged into it

    @property
    def parameter(self) -> Tensor:
        """The base's own parameter, as it lies in memory, with whatever is merged into it."""
        raise NotImplementedError

    @property
    def z_dtype(self) -> torch.dtype:
        """float32, or float64 if the base has it, to check the arithmetic."""
        raise NotImplementedError

    def carries(self, name: str) -> bool:
        """Whether an expert of this name adapts the layer."""
        return name in self.svf_z

    def decompose(self) -> None:
        """Loads or computes as many factors as the layer's experts need. Cheap when they are there already."""
        raise NotImplementedError

    def deltas(self, adapter_names: list[str]) -> Tensor:
        """c_k (z_k − 1) of each expert [K, ..., r] with its scale c_k; zero beyond an expert's own rank."""
        rank = self.svf_s.shape[-1]
        deltas = [F.pad(self.svf_z[name] - 1, (0, rank - self.svf_z[name].shape[-1])) for name in adapter_names]
        if self.svf_scales:
            deltas = [self.svf_scales.get(name, 1.0) * each for name, each in zip(adapter_names, deltas, strict=True)]
        return torch.stack(deltas)

    def delta(self, adapter_names: list[str]) -> Tensor:
        """δ = Σ_k c_k (z_k − 1) [..., r] of at least one expert."""
        return self.deltas(adapter_names).sum(0)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Sets what PEFT calls an adapter's scale: c in 1 + c (z − 1), in this layer. It is not saved."""
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

    def merge_delta(self, delta: Tensor) -> Tensor:
        """W + U diag(s·δ) Vᵀ, rounded once to the base's dtype, for δ [..., r]."""
        raise NotImplementedError

    def check_mergeable(self) -> None:
        """Raises UserError if nothing can be merged into the layer."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Replaces the base's data with W' and keeps them for `unmerge`.

        Raises:
            UserError: as `check_mergeable` does.
            ValueError: with `safe_merge`, if W' is not finite; then nothing changes.
        """
        self.check_mergeable()
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.svf_z]
        if not names:
            return
        merged = self.merge_delta(self.delta([*self.merged_adapters, *names]).detach())
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"merging {', '.join(names)} gives a weight that is not finite; the expert is broken")
        if self._pristine is None:
            self._pristine = self.parameter.data
        self.parameter.data = self._as_in_base(merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the base's own data back, bit for bit."""
        if self._pristine is not None:
            self.parameter.data = self._pristine
            self._pristine = None
        self.merged_adapters.clear()

    def _as_in_base(self, matrix: Tensor) -> Tensor:
        return matrix

    def enable_adapters(self, enabled: bool) -> None:
        """Switches between the experts and the base. What is frozen stays frozen; PEFT's own would thaw it."""
        self._disable_adapters = not enabled

    def invalidate(self) -> None:
        """Forgets what was computed from z. Needed only after z was changed in place through `.data`."""

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
        if self._pristine is not None:
            self._pristine = fn(self._pristine)
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT would also cast z to the base's dtype after loading it.
        z = self.svf_z.get(adapter_name)
        if z is not None and not z.is_meta:
            z.data = z.data.to(device or self.parameter.device)

    def __repr__(self) -> str:
        return "svf." + super().__repr__()
