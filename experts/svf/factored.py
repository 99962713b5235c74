"""A weight changed by a product of two thin factors, W' = W + L R, that is never written out.

Multiplying by it multiplies by the parts, x W' = x W + (x L) R, however the code around it is written: with an index
for one expert, a gather for each token, transposed, or grouped. Any other operation gets W' itself, made for that call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

GROUPED = {"grouped_mm", "_grouped_mm", "grouped_mm_fallback"}
MULTIPLY = {"matmul", "__matmul__", "bmm", "mm"} | GROUPED
ALIGNED = 8  # values: grouped products want multiples of 16 bytes, in half precision
SAME_AS_W = {"__get__", "size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "__len__"}
SAME_AS_W |= {"is_floating_point", "is_contiguous", "data_ptr", "get_device"}  # the pointer: to check alignment


class FactoredWeight(Tensor):
    """W + L R for W [..., p, q], L [..., p, r] and R [..., r, q]; it has W's shape and dtype."""

    _w: Tensor
    _left: Tensor
    _right: Tensor

    @classmethod
    def of(cls, w: Tensor, left: Tensor, right: Tensor) -> Self:
        weight = w.as_subclass(cls)
        weight._w, weight._left, weight._right = w, left, right
        return weight

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            first, second = (*args, None, None)[:2]
            if name in SAME_AS_W:
                answer = func(first._w, *args[1:], **kwargs)
                if not isinstance(answer, Tensor):
                    return answer
            if name == "__getitem__" and first.ndim == 3 and _picks_matrices(second):
                return cls.of(first._w[second], first._left[second], first._right[second])
            if name in ("transpose", "swapaxes") and {axis % first.ndim for axis in args[1:]} == _last_two(first):
                return cls.of(first._w.mT, first._right.mT, first._left.mT)
            if name == "linear" and not isinstance(first, cls) and isinstance(second, cls):
                difference = F.linear(F.linear(first, second._right), second._left)
                return func(first, second._w, *args[2:], **kwargs) + difference
            if name in MULTIPLY and (isinstance(first, cls) or isinstance(second, cls)) and "out" not in kwargs:
                return _multiply(func, first, second, name in GROUPED, args[2:], kwargs)
            args, kwargs = tree_map(_written_out, (args, dict(kwargs)))
            return func(*args, **kwargs)


def _multiply(func: Callable[..., Any], x: Any, y: Any, grouped: bool, rest: Sequence[Any], kwargs: Any) -> Any:
    """x y, where one of the two is W + L R."""
    if isinstance(y, FactoredWeight):
        x = _written_out(x)
        left, right = (_aligned(y._left, -1), _aligned(y._right, -2)) if grouped else (y._left, y._right)
        return func(x, y._w, *rest, **kwargs) + func(func(x, left, *rest, **kwargs), right, *rest, **kwargs)
    return func(x._w, y, *rest, **kwargs) + func(x._left, func(x._right, y, *rest, **kwargs), *rest, **kwargs)


def _aligned(factor: Tensor, axis: int) -> Tensor:
    """The factor padded with zeros along the last axis or the one before, up to a multiple of `ALIGNED`."""
    missing = -factor.shape[axis] % ALIGNED
    return F.pad(factor, (0, missing) if axis == -1 else (0, 0, 0, missing)) if missing else factor


def _picks_matrices(index: Any) -> bool:
    """Whether an index chooses among the matrices of a stack and leaves them whole."""
    if isinstance(index, Tensor):
        return index.dtype in (torch.int32, torch.int64) and index.ndim <= 1
    return isinstance(index, slice) or (isinstance(index, int) and not isinstance(index, bool))


def _last_two(weight: Tensor) -> set[int]:
    return {weight.ndim - 2, weight.ndim - 1}


def _written_out(value: Any) -> Any:
    return value._w + value._left @ value._right if isinstance(value, FactoredWeight) else value
