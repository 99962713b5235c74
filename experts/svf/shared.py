"""An optimiser for one z that matrices of a kind share across all layers; layers, files and mixtures see a z for each.

Such an expert has as many trained numbers as one layer has, the fewest that SVF can do with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn


def of_one_kind(matrices: Iterable[tuple[str, nn.Parameter]]) -> list[list[nn.Parameter]]:
    """Groups of the z of matrices whose names differ only in the layer's number and that have equally many values."""
    kinds: dict[tuple[str, int], list[nn.Parameter]] = {}
    for name, z in matrices:
        kinds.setdefault((re.sub(r"\d+", "#", name), z.numel()), []).append(z)
    return list(kinds.values())


class SharedAdamW(torch.optim.AdamW):
    """AdamW on one z for each kind, whose gradient is the sum over all the z that share it.

    Args:
        kinds: for each kind, the z [r] that share one; all of them are equal.
        max_grad_norm: clips the global norm of the sums; 0 does not clip.
    """

    def __init__(self, kinds: Sequence[Sequence[nn.Parameter]], lr: float, max_grad_norm: float) -> None:
        self.kinds = kinds
        self.max_grad_norm = max_grad_norm
        super().__init__([first for first, *_ in kinds], lr=lr, weight_decay=0.0)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for first, *others in self.kinds:
            for z in others:
                if z.grad is not None and first.grad is not None:
                    first.grad += z.grad
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_([first for first, *_ in self.kinds], self.max_grad_norm)
        super().step(closure)
        with torch.no_grad():
            for first, *others in self.kinds:
                for z in others:
                    z.copy_(first)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for _, *others in self.kinds:
            for z in others:
                z.grad = None
