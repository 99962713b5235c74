"""One linear layer whose singular values experts rescale."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError
from experts.svf.decomposition import decompose
from experts.svf.mixing import LayerMixture, LoraFactors, mixture_of
from experts.svf.quantised import dense_weight, is_quantised, shape_of
from experts.svf.scaled import SVFLayer

# Fused optimisers change parameters without bumping their version counters, so a merged weight also remembers how many
# optimiser steps this process had made when it was built. Which parameters a step changed does not matter: some
# optimisers keep copies of their own.
_optimizer_steps = 0


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


class _Written:
    """A tensor as last written: equal as long as it is the same tensor, in the same memory, with no change counted.

    It keeps the tensor and its memory alive, so that no other tensor can take their place.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data = tensor, tensor.detach()
        self.change = (-1 if tensor.is_inference() else tensor._version, self.data.data_ptr())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and self.tensor is other.tensor and self.change == other.change

    def __hash__(self) -> int:
        return hash((id(self.tensor), self.change))


class MergedLinear(torch.autograd.Function):
    """y = x W'ᵀ + b for a merged W' = W + U diag(s·δ) Vᵀ, differentiable in δ = z − 1 without a dense gradient.

    With g = ∂L/∂y and the projections a = g U and p = x V (both [tokens, r]):

        ∂L/∂δ = s · Σ_tokens a·p
        ∂L/∂x = g W' = (a·s·(1 + δ)) Vᵀ

    The second form of ∂L/∂x reuses a. It costs tokens × r × n instead of tokens × m × n, so it is used where it is
    cheaper: for matrices that are taller than wide (r < m); their factors carry all of W'.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,  # [T, n]
        delta: Tensor,  # [r], float32
        bias: Tensor | None,
        merged: Tensor,  # [m, n], built from delta: a constant for autograd
        u: Tensor,  # [m, r]
        s: Tensor,  # [r]
        vt: Tensor,  # [r, n]
    ) -> Tensor:
        ctx.save_for_backward(x, delta, merged, u, s, vt)
        return F.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, delta, merged, u, s, vt = ctx.saved_tensors
        m, n = merged.shape
        a = g @ u  # [T, r]
        p = x @ vt.T  # [T, r]
        grad_delta = s * (a * p).sum(0)  # [r]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (a * (s * (1 + delta))) @ vt if m > n else g @ merged
        grad_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_delta, grad_bias, None, None, None, None


class SVFLinear(SVFLayer):
    """A linear layer W [m, n] with experts z [r]: W' = U diag(s·z) Vᵀ (arXiv 2501.06252, equation 1).

    Everything is computed as a difference, W' = W + U diag(s·δ) Vᵀ with δ = Σ_k c_k (z_k − 1) over the active adapters
    (c_k is 1 unless `set_scale` says otherwise), so that z = 1 is the base bit for bit in every dtype. How a forward
    runs follows from what it needs:

    - nothing active: the base layer;
    - training in full precision and full rank: a merged weight, with `MergedLinear`'s backward;
    - training otherwise: y = W x + U (s·δ·(Vᵀ x)). A merged bfloat16 weight would swallow small changes of z, and a
      few singular values cost no more than a LoRA;
    - no gradient wanted: a merged weight;
    - a call with mixtures of its own (`SVFModel.mixed`): a merged weight if its rows share one mixture, else
      y_b = W x_b + U (s·δ_b·(Vᵀ x_b)) with δ_b [r] for row b, or
      y_b = U (s·(1 + δ_b)·(Vᵀ x_b)) if that is exact enough and no row is the base. To either,
      Σ_k α_bk B_k (A_k x_b) is added for the LoRAs that the layer carries, which only mixtures can name.

    Nothing is ever merged into a base in four or eight bits: rounding W' to so few bits would lose the expert, and
    avoiding a dense W' is the point of such a base. All of the above is then y = W_q x + U (s·δ·(Vᵀ x)).

    A merged weight is kept until one of its z changes: by an optimiser step, a load, an adapter switch, new data
    (`z.data = …`), or any in-place operation that PyTorch counts. PyTorch does not count `z.data.add_(…)` and the like;
    call `invalidate()` after them.

    U [m, r], s [r] and Vᵀ [r, n] are buffers shared by all experts of the layer, have the largest rank among them, and
    are never saved. z is float32 whatever the dtype of the base.
    """

    svf_u: Tensor  # [m, r]
    svf_vt: Tensor  # [r, n]

    def __init__(
        self,
        base_layer: nn.Linear | Conv1D,
        adapter_name: str | None = None,  # None: no expert, for a layer that only carries LoRAs
        rank: int | None = None,
        inference: bool = True,
        dtype: torch.dtype = torch.float32,  # of the factors beside a quantised weight
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.transposed = isinstance(base_layer, Conv1D)  # its weight is [n, m]
        self.out_features, self.in_features = shape_of(base_layer)
        self.quantised = is_quantised(base_layer)
        self._factor_dtype = dtype
        self.svf_z = nn.ParameterDict()
        self.svf_scales = {}
        for name in ("svf_u", "svf_s", "svf_vt"):
            self.register_buffer(name, None, persistent=False)
        self.svf_loras: dict[str, LoraFactors] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = [] if adapter_name is None else adapter_name
        self._merged_weight: tuple[Any, Tensor] | None = None  # with the version it was built from
        self._kept_scale: tuple[Any, Tensor] | None = None
        self._invalidations = 0
        self.keeps_merged = True  # False if the base is sharded over processes: a merged copy would be whole
        if adapter_name is not None:
            self.update_layer(adapter_name, rank, inference)

    def update_layer(self, adapter_name: str, rank: int | None, inference: bool) -> None:
        """Adds the expert z = 1 under a name, for the `rank` largest singular values or for all."""
        rank = min(self.out_features, self.in_features, rank or self.in_features)
        with torch.inference_mode(False):  # so that z counts its changes even if the model is loaded in that mode
            z = torch.ones(rank, dtype=self.z_dtype, device=self.base_layer.weight.device)
            self.svf_z[adapter_name] = nn.Parameter(z)
        self.invalidate()
        self.set_adapter(self.active_adapters, inference_mode=inference)

    def decompose(self) -> None:
        """Loads or computes as many factors as the layer's experts need. Cheap when they are there already."""
        rank = max((z.numel() for z in self.svf_z.values()), default=0)
        if rank > (0 if self.svf_s is None else len(self.svf_s)):
            u, self.svf_s, vt = decompose(self.pristine_weight, rank)
            self.svf_u, self.svf_vt = u.to(self.dtype), vt.to(self.dtype)

    @property
    def parameter(self) -> Tensor:
        return self.base_layer.weight

    @property
    def pristine_weight(self) -> Tensor:
        """The base's W [m, n], even while adapters are merged into the layer; a quantised layer's is made anew."""
        if self._pristine is None:
            return dense_weight(self.base_layer)
        return self._pristine.T if self.transposed else self._pristine

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the layer computes in: its weight's, or the factors' beside a quantised weight."""
        return self._factor_dtype if self.quantised else self.base_layer.weight.dtype

    @property
    def z_dtype(self) -> torch.dtype:
        # float64 only serves to check the arithmetic.
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def carries(self, name: str) -> bool:
        """Whether an expert or a LoRA of this name adapts the layer."""
        return name in self.svf_z or name in self.svf_loras

    def version(self, adapter_names: list[str]) -> tuple[Any, ...]:
        """A key that changes whenever one of these experts' z, one of these LoRAs or the base's weight may have."""
        experts = [self.svf_z[name] for name in adapter_names if name in self.svf_z]
        if torch.compiler.is_compiling():  # the compiler cannot trace more than this
            return (self._invalidations, _optimizer_steps, *((id(z), z._version) for z in experts))
        loras = [factor for name in adapter_names for factor in self.svf_loras.get(name, ())]
        return (self._invalidations, _optimizer_steps, *map(_Written, (*experts, *loras)))

    @property
    def whole_in_factors(self) -> bool:
        """Whether U diag(s) Vᵀ is W to float32 precision: all singular values are there, and nothing was rounded."""
        return (
            not self.quantised
            and self.svf_s is not None
            and len(self.svf_s) == min(self.out_features, self.in_features)
            and self.svf_u.dtype.itemsize >= 4
        )

    def difference(self, delta: Tensor) -> Tensor:
        """U diag(s·δ) Vᵀ [m, n], in the precision of δ [r]."""
        return (self.svf_u.to(delta.dtype) * (self.svf_s * delta)) @ self.svf_vt.to(delta.dtype)

    def merge_delta(self, delta: Tensor) -> Tensor:
        """W + U diag(s·δ) Vᵀ [m, n], rounded once to the base's dtype, laid out in memory like the base's weight."""
        return self.merge_difference(self.difference(delta))

    def merge_difference(self, difference: Tensor) -> Tensor:
        """W + a difference [m, n], rounded and laid out as by `merge_delta`. The difference is overwritten."""
        merged = difference.add_(self.pristine_weight).to(self.pristine_weight.dtype)
        return merged.T.contiguous().T if self.transposed else merged

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """U diag(s·(z − 1)) Vᵀ, in the shape and dtype of the base layer's weight (PEFT's LoRA conversion asks)."""
        difference = self.difference(self.delta([adapter_name]).detach())
        return (difference.T if self.transposed else difference).to(self.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def check_mergeable(self) -> None:
        """Raises UserError if the layer is quantised."""
        if self.quantised:
            raise UserError(
                "experts cannot be merged into a 4-bit or 8-bit base, which would round them away: leave them "
                "unmerged, export a LoRA, or merge them into the dense base"
            )

    def invalidate(self) -> None:
        """Forgets what was computed from z. Needed only after z was changed in place through `.data`."""
        self._merged_weight = self._kept_scale = None
        self._invalidations += 1

    def _scale(self, active: list[str]) -> Tensor:
        """s·δ [r] of the active experts, computed anew only if one of them has changed."""
        version, kept = self.version(active), self._kept_scale
        if kept is None or kept[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                self._kept_scale = kept = version, self.svf_s * self.delta(active)
        return kept[1]

    def _merged(self, active: list[str]) -> Tensor:
        """W' [m, n] under the active experts, built anew only if one of them has changed."""
        version, kept = self.version(active), self._merged_weight
        if kept is None or kept[0] != version:
            # Built outside inference mode: a later training step saves this tensor for its backward.
            with torch.inference_mode(False), torch.no_grad():
                self._merged_weight = kept = version, self.merge_delta(self.delta(active))
        return kept[1]

    @property
    def weight(self) -> Tensor:
        """W', shaped like the base layer's weight, for models such as Mamba that read it without calling the layer."""
        weight: Tensor = self.base_layer.weight
        mixture: LayerMixture | None = mixture_of(self)
        if mixture is not None:
            shared = mixture.shared_weight()
            return weight if shared is None else self._as_in_base(shared)
        active = [name for name in self.active_adapters if name in self.svf_z]
        if self.merged or self.disable_adapters or not active:
            return weight
        self.check_mergeable()
        if torch.is_grad_enabled() and any(self.svf_z[name].requires_grad for name in active):
            return weight + self._as_in_base(self.difference(self.delta(active)).to(weight.dtype))
        return self._as_in_base(self._merged(active))

    def _as_in_base(self, matrix: Tensor) -> Tensor:
        return matrix.T if self.transposed else matrix

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixture = mixture_of(self)
        if mixture is not None:
            return self._mixed(x, mixture)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        active = [name for name in self.active_adapters if name in self.svf_z]
        if self.merged or not active:
            return self.base_layer(x, *args, **kwargs)

        if self.quantised:
            self._refuse_rounded(active)
            y = self.base_layer(x, *args, **kwargs)
            return y + self._factored(x.to(self.dtype), self.delta(active)).to(y.dtype)
        weight, bias = self.base_layer.weight, self.base_layer.bias
        trained = any(self.svf_z[name].requires_grad for name in active)
        wants_gradient = trained and torch.is_grad_enabled()
        full_rank = len(self.svf_s) == min(self.out_features, self.in_features)
        # Autocast rounds a merged weight to half precision, as a half-precision base does.
        full_precision = weight.dtype.itemsize >= 4 and not torch.is_autocast_enabled(x.device.type)

        # At full rank the merged forward costs what the base's does, and MergedLinear's backward gets z's gradient from
        # a product that the input's needs anyway. At limited rank the factors cost less than merging at every step.
        if wants_gradient and full_precision and full_rank and self.keeps_merged:
            factors = (self.svf_u, self.svf_s, self.svf_vt)
            tokens = x.reshape(-1, self.in_features)  # so that the output is no view, which a base could not add to
            y = MergedLinear.apply(tokens, self.delta(active), bias, self._merged(active), *factors)
            return y.view(*x.shape[:-1], self.out_features)
        # A weight in half precision would round small differences away, so an expert in training is never merged there,
        # neither for the gradient nor for the answers that the gradient is about.
        if wants_gradient or not self.keeps_merged or (trained and not full_precision):
            y = self.base_layer(x, *args, **kwargs)
            if torch.is_grad_enabled():
                return y + self._factored(x, self.delta(active))
            y, hidden = y.contiguous(), F.linear(x, self.svf_vt)  # [..., m], [..., r]
            hidden.mul_(self._scale(active))
            self._add(y, hidden, self.svf_u)
            return y
        return F.linear(x, self._merged(active), bias)

    def _refuse_rounded(self, adapter_names: list[str]) -> None:
        """Raises UserError for a z in half precision, which would hardly move from 1."""
        if any(self.svf_z[name].dtype.itemsize < 4 for name in adapter_names):
            raise UserError(
                "z was rounded to half precision, as TRL's own trainers do with a 4-bit or 8-bit base: set "
                "base.is_loaded_in_4bit = base.is_loaded_in_8bit = False before you create the trainer"
            )

    def _factored(self, x: Tensor, delta: Tensor) -> Tensor:
        """U (s·δ·(Vᵀ x)) for x [..., n] and δ [r]."""
        hidden = F.linear(x, self.svf_vt)
        return F.linear((hidden * (self.svf_s * delta)).to(hidden.dtype), self.svf_u)

    def _mixed(self, x: Tensor, mixture: LayerMixture) -> Tensor:
        """Each row of x [..., n] under its own mixture, or all under one."""
        if mixture.weight is not None:
            return F.linear(x, mixture.weight, self.base_layer.bias)
        if mixture.is_base:
            return self.base_layer(x)
        y: Any = None if mixture.whole else self.base_layer(x).contiguous()
        x = x.to(self.dtype) if self.quantised else x  # the quantised layer itself does the same
        if mixture.scale is not None and mixture.u is not None and mixture.vt is not None:
            hidden = F.linear(x, mixture.vt)  # [..., r]
            hidden.mul_(mixture.spread(mixture.scale, x))
            if y is None:
                y = F.linear(hidden, mixture.u, self.base_layer.bias)
            else:
                self._add(y, hidden, mixture.u)
        for alpha, (lora_a, lora_b) in mixture.loras:
            hidden = F.linear(x, lora_a)  # [..., k]
            hidden.mul_(mixture.spread(alpha, x))
            self._add(y, hidden, lora_b)
        return y

    def _add(self, y: Tensor, hidden: Tensor, factor: Tensor) -> None:
        """Adds hidden [..., k] times factor [m, k]ᵀ to y [..., m], in place and in y's dtype."""
        hidden = hidden.reshape(-1, factor.shape[1]).to(y.dtype)
        y.view(-1, self.out_features).addmm_(hidden, factor.T.to(y.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> SVFLinear:
        super()._apply(fn, recurse)
        self.svf_loras = {name: LoraFactors(*map(fn, factors)) for name, factors in self.svf_loras.items()}
        self.invalidate()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.invalidate()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_merged_weight": None, "_kept_scale": None}  # made again when needed
