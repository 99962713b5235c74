"""z of the original code's p: a sigmoid for each singular value, and the matrix keeps its nuclear norm."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_z(p: Tensor, s: Tensor) -> Tensor:
    """z = σ(p) · Σs / Σ(s·σ(p)) [r]: positive, and U diag(s·z) Vᵀ keeps the nuclear norm Σs of the matrix.

    A matrix of zeros has nothing to rescale: z = 1.
    """
    if not s.any():
        return torch.ones_like(p)
    gate = torch.sigmoid(p)
    return gate * (s.sum() / (s * gate).sum())
