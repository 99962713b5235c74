"""The matrices of a mixture of experts, which a base keeps in one parameter [E, m, n] and multiplies by on its own.

Mixtral, Qwen3-MoE, gpt-oss and others have no linear layer for each of their E matrices, but a module that reads its
own parameter. That module is not changed: a call under an expert runs a shallow copy of it whose parameter is
W_e + U_e diag(s_e·δ_e) V_eᵀ, kept as factors. So nothing here depends on an architecture, and nothing changes while
other threads run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experts.outside.errors import UserError
from experts.svf.decomposition import decompose
from experts.svf.factored import FactoredWeight
from experts.svf.mixing import LayerMixture, mixture_of
from experts.svf.names import plain_name
from experts.svf.scaled import SVFLayer

# How transformers multiplies in a mixture; other kernels read a tensor's memory and would miss the difference.
IMPLEMENTATIONS = (None, "eager", "batched_mm", "grouped_mm")


class SVFStack(SVFLayer):
    """The matrices W_e of one parameter [E, m, n], with experts z [E, r]: W'_e = U_e diag(s_e·z_e) V_eᵀ.

    They run as a difference, in factors: x W'_e = x W_e + (x L_e) R_e, in training and in answers alike. So z = 1 is
    the base bit for bit, half precision keeps small differences, and only `merge` ever makes a second copy of the
    matrices, which are most of such a base.

    It is a child of an `SVFExperts`, under the parameter's name, and so has the parameter's full name in the base.

    U [E, m, r], s [E, r] and Vᵀ [E, r, n] are buffers, like those of an `SVFLinear`.
    """

    svf_u: Tensor  # [E, m, r]
    svf_vt: Tensor  # [E, r, n]

    def __init__(self, base_layer: nn.Module, parameter: str) -> None:
        super().__init__()
        self._owner = (base_layer, parameter)  # in a tuple, so that the module does not become a child
        self.svf_z = nn.ParameterDict()
        self.svf_scales = {}
        for name in ("svf_u", "svf_s", "svf_vt"):
            self.register_buffer(name, None, persistent=False)
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = []

    @property
    def base_layer(self) -> nn.Module:
        """The base's module that has the parameter."""
        return self._owner[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter [E, m, n] as it is now."""
        module, parameter = self._owner
        return getattr(module, parameter)

    @property
    def pristine_weight(self) -> Tensor:
        """The base's W [E, m, n], even while adapters are merged into it."""
        return self.parameter.detach() if self._pristine is None else self._pristine

    @property
    def z_dtype(self) -> torch.dtype:
        return torch.float64 if self.parameter.dtype == torch.float64 else torch.float32

    def update_layer(self, adapter_name: str, rank: int | None, inference: bool) -> None:
        """Adds the expert z = 1 under a name, for the `rank` largest singular values of each matrix, or for all."""
        matrices, m, n = self.parameter.shape
        with torch.inference_mode(False):  # so that z can be trained even if the model is loaded in that mode
            z = torch.ones(matrices, min(m, n, rank or n), dtype=self.z_dtype, device=self.parameter.device)
            self.svf_z[adapter_name] = nn.Parameter(z)
        self.set_adapter(self.active_adapters or adapter_name, inference_mode=inference)

    def decompose(self) -> None:
        rank = max((z.shape[-1] for z in self.svf_z.values()), default=0)
        if rank > (0 if self.svf_s is None else self.svf_s.shape[-1]):
            self.svf_u, self.svf_s, self.svf_vt = decompose(self.pristine_weight, rank)

    def mixture(self, names: Sequence[str], alpha: Tensor, matrix: str) -> LayerMixture:
        """How a batch under α [B, K] runs: `u` is U diag(s·δ) [E, m, r], `vt` is Vᵀ; the base without them.

        Raises:
            UserError: naming the matrices, if rows have different experts here.
        """
        own = [k for k, name in enumerate(names) if name in self.svf_z]
        alpha = alpha[:, own]
        if not alpha.any():
            return LayerMixture()
        if not (alpha == alpha[:1]).all():
            raise UserError(
                f"{matrix} cannot run rows under different mixtures, because a router reorders their tokens; run the "
                "rows separately, or leave it out of target_parameters"
            )
        deltas = self.deltas([names[k] for k in own])  # [K', E, r]
        delta = torch.tensordot(alpha[0].to(deltas), deltas, 1)
        return LayerMixture(u=self._scaled(delta), vt=self.svf_vt, name=matrix)

    def changed(self) -> FactoredWeight | None:
        """The weight that replaces the parameter in this call; None for the base's own."""
        mixture: LayerMixture | None = mixture_of(self)
        if mixture is not None:
            if mixture.u is None or mixture.vt is None:
                return None
            return FactoredWeight.of(self.parameter, mixture.u, mixture.vt)
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.svf_z]
        if self.disable_adapters or self.merged or not active:
            return None
        return FactoredWeight.of(self.parameter, self._scaled(self.delta(active)), self.svf_vt)

    def _scaled(self, delta: Tensor) -> Tensor:
        """U diag(s·δ) [E, m, r], for δ [E, r]."""
        return (self.svf_u * (self.svf_s * delta)[:, None]).to(self.svf_u.dtype)

    def merge_delta(self, delta: Tensor) -> Tensor:
        """W + U diag(s·δ) Vᵀ [E, m, n], made one matrix at a time, each rounded once to the base's dtype."""
        merged = torch.empty_like(self.pristine_weight)
        for e, w in enumerate(self.pristine_weight):
            u, vt = self.svf_u[e].to(delta.dtype), self.svf_vt[e].to(delta.dtype)
            merged[e] = ((u * (self.svf_s[e] * delta[e])) @ vt).add_(w)
        return merged

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class SVFExperts(nn.Module):
    """A base's module that holds the matrices of a mixture of experts; each parameter adapted is an `SVFStack`."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.train(base_layer.training)

    @property
    def stacks(self) -> dict[str, SVFStack]:
        """The stacks of the adapted parameters, by their names in the module."""
        return {name: module for name, module in self._modules.items() if isinstance(module, SVFStack)}

    def stack(self, parameter: str) -> SVFStack:
        """The stack of a parameter, which is adapted from now on."""
        if parameter not in self.stacks:
            # `add_module` refuses the name, because the base's own parameter is seen under it (`__getattr__`).
            self._modules[parameter] = SVFStack(self.base_layer, parameter)
        return self.stacks[parameter]

    @torch.compiler.disable  # the compiler cannot trace a weight in factors
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        changed = {name: weight for name, stack in self.stacks.items() if (weight := stack.changed()) is not None}
        module = self.base_layer
        if not changed:
            return module(*args, **kwargs)
        own = object.__new__(type(module))
        own.__dict__.update(module.__dict__, **changed)
        own._parameters = {name: p for name, p in module._parameters.items() if name not in changed}
        own.__dict__.pop("forward", None)  # accelerate's hook, which would run the module it was put on
        return own(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's way to unload it: returns the base's own module, with or without the experts' changes."""
        for stack in self.stacks.values():
            if merge:
                stack.merge(safe_merge, adapter_names)
            else:
                stack.unmerge()
        return self.base_layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)  # the base may read, say, the number of experts


def fused_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters [experts, m, n] in which transformers keeps the matrices of a mixture of experts."""
    if isinstance(module, nn.Conv1d):
        return {}
    return {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3 and len(p) > 1}


def fused_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters [E, m, n] that hold the matrices of a mixture of experts, by their names in the plain base.

    The parameters of one module keep their order.
    """
    return {
        f"{plain_name(name).removesuffix('.base_layer')}.{parameter}": tensor
        for name, module in model.named_modules()
        if "expert" in type(module).__name__.lower()
        for parameter, tensor in fused_matrices(module).items()
    }


def refuse_unsuitable(name: str, module: nn.Module, weight: Tensor) -> None:
    """Raises UserError, naming it, for a parameter whose matrices cannot be decomposed or cannot run in factors."""
    if weight.is_meta:
        raise UserError(f"{name} is not loaded (meta device): load the base without offloading first")
    dense = type(weight.data) is Tensor and weight.dtype.is_floating_point and weight.dtype.itemsize >= 2
    if not dense:
        raise UserError(
            f"{name} is quantised ({str(weight.dtype).removeprefix('torch.')}): the singular values of "
            "mixture-of-experts matrices need the dense weight; load the base without quantisation, or leave it out of "
            "target_parameters"
        )
    implementation = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"{name} is run by {implementation!r}, which cannot apply an expert's factors: load the base with "
            "experts_implementation='grouped_mm'"
        )
