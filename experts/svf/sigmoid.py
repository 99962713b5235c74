"""An optimiser for the original code's parametrisation of z by p; layers, files and mixtures only see z itself.

Each singular value has a sigmoid, and the matrix keeps its nuclear norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

INITIAL_P = 0.1  # σ(0.1) = 0.525; any constant p is z = 1


def effective_z(p: Tensor, s: Tensor) -> Tensor:
    """z = σ(p) · Σs / Σ(s·σ(p)) [r]: positive, and U diag(s·z) Vᵀ keeps the nuclear norm Σs of the matrix.

    In a stack [E, r] each matrix is treated by itself. A matrix of zeros has nothing to rescale: z = 1.
    """
    if p.ndim > 1:
        return torch.stack([effective_z(*matrix) for matrix in zip(p, s, strict=True)])
    if not s.any():
        return torch.ones_like(p)
    gate = torch.sigmoid(p)
    return gate * (s.sum() / (s * gate).sum())


class SigmoidAdamW(torch.optim.AdamW):
    """AdamW on p where z = `effective_z(p, s)`; each step carries ∂L/∂z over to p and writes the new z.

    Args:
        matrices: (z, s) of each adapted matrix, both [r], or of each stack, both [E, r]; every z must be 1.
        max_grad_norm: clips the global norm of ∂L/∂p, as the original code does; 0 does not clip.
    """

    def __init__(self, matrices: Sequence[tuple[nn.Parameter, Tensor]], lr: float, max_grad_norm: float) -> None:
        self.matrices = list(matrices)
        self.max_grad_norm = max_grad_norm
        self.p = [nn.Parameter(torch.full_like(z, INITIAL_P)) for z, _ in self.matrices]
        super().__init__(self.p, lr=lr, weight_decay=0.0)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for p, (z, s) in zip(self.p, self.matrices, strict=True):
            if z.grad is not None:
                p.grad = torch.func.vjp(lambda p, s=s: effective_z(p, s), p.detach())[1](z.grad)[0]
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.p, self.max_grad_norm)
        super().step(closure)
        with torch.no_grad():
            for p, (z, s) in zip(self.p, self.matrices, strict=True):
                z.copy_(effective_z(p, s))

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for z, _ in self.matrices:
            z.grad = None

    def state_dict(self) -> dict[str, Any]:
        # z does not determine p (its scale is lost), so p is kept for an exact resume.
        return {**super().state_dict(), "p": [p.detach().clone() for p in self.p]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        values = state_dict["p"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "p"})
        with torch.no_grad():
            for p, value in zip(self.p, values, strict=True):
                p.copy_(value)
