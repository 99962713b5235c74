"""The last layers of the network: features of a task and a matrix in, the numbers of its adapter out.

A head writes one flat vector a matrix, with no gradient-free part in it: A [r, n] and then Bᵀ [r, m] for a LoRA, z − 1
[r] for an SVF expert. Its weight starts at zero, so that an untrained network writes what the bias holds: for a LoRA
the usual initialisation, A random and B = 0 (arXiv 2506.06105: Bias-HyperInit), for an expert z = 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Size = Literal["L", "M", "S"]


class LoraHead(nn.Module):
    """A and B of the LoRAs of one kind of matrix W [m, n].

    L writes A and B at once, r·(n + m) numbers. M writes A and B one after the other, r·max(n, m) numbers each. S
    writes one rank of one of them at a time, max(n, m) numbers. What is beyond the shorter side is not used.

    The bias is a whole LoRA, shared by all tasks and layers.
    """

    def __init__(self, size: Size, rank: int, out_features: int, in_features: int, features: int) -> None:
        super().__init__()
        self.size, self.rank, self.out_features, self.in_features = size, rank, out_features, in_features
        self.longest = max(out_features, in_features)
        outputs = {"L": rank * (in_features + out_features), "M": rank * self.longest, "S": self.longest}
        self.linear = nn.Linear(features, outputs[size], bias=False)
        nn.init.zeros_(self.linear.weight)
        a = torch.empty(rank, in_features)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.bias = nn.Parameter(torch.cat([a.flatten(), torch.zeros(rank * out_features)]))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, N, h] (L), [B, N, 2, h] (M) or [B, N, 2, r, h] (S) of N matrices → [B, N, r·(n + m)]."""
        numbers = self.linear(features)
        if self.size != "L":
            numbers = numbers.view(*features.shape[:2], 2, self.rank, self.longest)
            a, b = numbers[:, :, 0, :, : self.in_features], numbers[:, :, 1, :, : self.out_features]
            numbers = torch.cat([a.flatten(2), b.flatten(2)], 2)
        return numbers + self.bias


class ZHead(nn.Module):
    """z − 1 of the experts of all matrices of one shape."""

    def __init__(self, rank: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, rank)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, N, h] of N matrices → [B, N, r]."""
        return self.linear(features)
