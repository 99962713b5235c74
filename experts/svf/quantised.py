"""Linear layers that keep their weight in four or eight bits, as bitsandbytes does (QLoRA, arXiv 2305.14314).

An expert of few singular values needs the dense weight once, for its singular vectors, and never again:
y = W_q x + U (s·δ·(Vᵀ x)), where the layer itself gives W_q x and W = U diag(s) Vᵀ is what it was quantised from. Where
that is on disk, an expert means the same there and on the dense base. The singular vectors of W_q are others: rounding
to four bits turns those of near-equal singular values.

A 4-bit layer may keep the largest triplets of W, those that experts rescale, beside the bits of the rest:
W_q = Q(W − U S Vᵀ) + U S Vᵀ (QPiSSA, arXiv 2404.02948; SVDQuant, arXiv 2411.05007). The rest is smaller than W, and is
rounded by less.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError
from experts.svf.decomposition import decompose


def is_quantised(layer: nn.Module) -> bool:
    """Whether bitsandbytes keeps the layer's weight in four or eight bits."""
    weight = layer.weight
    if type(weight).__name__ == "Int8Params":  # it keeps them in half precision as well, if asked
        return not cast(Tensor, weight).is_floating_point()
    return type(weight).__name__ == "Params4bit"


def shape_of(layer: nn.Module | Tensor) -> tuple[int, int]:
    """(m, n) of a linear layer's W, whether it carries experts or not, or of the matrices of a stack [E, m, n].

    A 4-bit weight has the shape of its bytes.
    """
    if isinstance(layer, Tensor):
        return layer.shape[-2], layer.shape[-1]
    if isinstance(layer, Conv1D):
        n, m = layer.weight.shape
        return m, n
    if isinstance(layer, nn.Linear) and not is_quantised(layer):
        m, n = layer.weight.shape
        return m, n
    return cast(Any, layer).out_features, cast(Any, layer).in_features


@dataclass(frozen=True)
class DenseWeight:
    """What a layer was quantised from, in a safetensors file; a quantised layer has it as `dense_source`."""

    file: Path
    key: str
    dtype: torch.dtype
    """Of the base."""
    transposed: bool = False
    """Whether the file has it [n, m]."""

    def read(self) -> Tensor:
        """W [m, n], on the CPU.

        Raises:
            UserError: if the file has it no more.
        """
        try:
            with safe_open(self.file, "pt") as file:
                weight = file.get_tensor(self.key).to(self.dtype)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.file} no longer has what {self.key} was quantised from ({error}): load the base again"
            ) from error
        return weight.T if self.transposed else weight


def dense_weight(layer: nn.Module | Tensor) -> Tensor:
    """W [m, n] of a linear layer; of a quantised one what it was quantised from, or else what its bits stand for.

    A stack [E, m, n] is its own.
    """
    if isinstance(layer, Tensor):
        return layer.detach()
    if not is_quantised(layer):
        weight = cast(Tensor, layer.weight).detach()
        return weight.T if isinstance(layer, Conv1D) else weight
    source: DenseWeight | None = getattr(layer, "dense_source", None)
    return dequantised(layer) if source is None else source.read().to(cast(Tensor, layer.weight).device)


def dequantised(layer: nn.Module) -> Tensor:
    """W_q [m, n], dense, of a quantised layer."""
    bits = _dequantised_bits(layer)
    kept: KeptTriplets | None = getattr(layer, "kept_triplets", None)
    return bits if kept is None else bits + kept.product().to(bits.dtype)


def rounded(layer: nn.Module) -> Tensor:
    """What `dequantised` would give if the layer kept no triplets: every weight rounded by itself, [m, n]."""
    if not hasattr(layer, "kept_triplets"):
        return dequantised(layer)
    from bitsandbytes import functional

    dense, own = dense_weight(layer), cast(Any, layer).weight
    bits, state = functional.quantize_4bit(
        dense.flatten(),
        blocksize=own.blocksize,
        compress_statistics=own.compress_statistics,
        quant_type=own.quant_type,
    )
    return functional.dequantize_4bit(bits, state).view(dense.shape)


def _dequantised_bits(layer: nn.Module) -> Tensor:
    """W_q [m, n] less the triplets that the layer keeps beside its bits."""
    from bitsandbytes import functional

    # PEFT's `dequantize_module_weight` puts a new parameter into an 8-bit layer on a CPU, which then cannot run.
    unpack(layer)
    weight: Any = layer.weight
    if type(weight).__name__ == "Params4bit":
        end_to_end = copy(weight.quant_state)
        end_to_end.shape = torch.Size([weight.quant_state.shape.numel()])
        return functional.dequantize_4bit(weight.data, end_to_end).view(weight.quant_state.shape)
    state = cast(Any, layer).state  # it has the scales once the layer has run
    return functional.int8_vectorwise_dequant(weight.data, weight.SCB if state.SCB is None else state.SCB)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the base's checkpoint has the layer's weight [n, m], whatever the layer does."""
    return isinstance(layer, Conv1D) or getattr(layer, "source_cls", None) is Conv1D


def unpack(layer: nn.Module) -> None:
    """Has a 4-bit layer keep its weight as it was quantised, and multiply by it, also on a CPU.

    On some CPUs bitsandbytes repacks it when the layer is first called without a gradient, with rounded scales: then it
    multiplies in bfloat16, lets no gradient through, and what it dequantises is another matrix. And on all CPUs it
    reads scales as if each row of a matrix began a block (64 weights, usually), though blocks go on from row to row.

    Raises:
        UserError: if it has been repacked; the scales are rounded then.
    """
    if type(layer.weight).__name__ == "Params4bit":
        state = cast(Any, layer.weight).quant_state
        if state is not None and layer.weight.device.type == "cpu" and state.shape[-1] % state.blocksize:
            layer.forward = partial(_multiply, layer)
        cast(Any, layer).support_avx512bf16_for_cpu = False
        if getattr(cast(Any, layer.weight).quant_state, "packing_format_for_cpu", False):
            raise UserError(
                "bitsandbytes has repacked the base's 4-bit weights for answers on a CPU, and rounded them: attach "
                "experts before the base is first run, or load it with selfadapt.load_base"
            )


def _multiply(layer: nn.Module, x: Tensor) -> Tensor:
    """What a 4-bit layer is to give on a CPU."""
    dtype, bias = cast(Any, layer).compute_dtype or x.dtype, cast("Tensor | None", layer.bias)
    weight = _dequantised_bits(layer).to(dtype)
    return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)


class KeptTriplets(nn.Module):
    """The largest singular triplets of a 4-bit layer's dense weight; the layer's bits hold only what they leave.

    The layer keeps this as `kept_triplets`, and computes Q(W − U S Vᵀ) x + U (S Vᵀ x).
    """

    u: Tensor  # [m, r]
    svt: Tensor  # [r, n]

    def __init__(self, u: Tensor, svt: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", u)
        self.register_buffer("svt", svt)

    def product(self) -> Tensor:
        return self.u @ self.svt

    def forward(self, x: Tensor) -> Tensor:  # [..., n] → [..., m]
        return F.linear(F.linear(x.to(self.u.dtype), self.svt), self.u).to(x.dtype)


def keep_triplets(layer: nn.Module, rank: int) -> None:
    """Quantises a 4-bit layer anew, except for the `rank` largest triplets of its dense weight, which it keeps."""
    dense, old = dense_weight(layer), cast(Any, layer).weight
    u, s, vt = decompose(dense, min(rank, *dense.shape))
    kept = KeptTriplets(u.to(dense.dtype), (s[:, None] * vt).to(dense.dtype))
    rest = dense - kept.product()
    cast(Any, layer).weight = type(old)(
        rest,
        quant_type=old.quant_type,
        compress_statistics=old.compress_statistics,
        blocksize=old.blocksize,
        quant_storage=old.quant_storage,
        module=layer,
    ).to(old.device)
    cast(Any, layer).kept_triplets = kept
    layer.register_forward_hook(_with_triplets)


def _with_triplets(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + cast(Any, layer).kept_triplets(inputs[0])


def floating_dtype(parameters: Iterable[nn.Parameter]) -> torch.dtype:
    """What a base computes in: the dtype of the first parameter that is not kept in few bits."""
    few = ("Params4bit", "Int8Params")
    dense = (p.dtype for p in parameters if p.is_floating_point() and type(p).__name__ not in few)
    return next(dense, torch.float32)
