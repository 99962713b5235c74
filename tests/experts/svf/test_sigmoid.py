"""z from a sigmoid: what stays as it was."""

from __future__ import annotations

import torch

from experts.svf.sigmoid import effective_z


def test_any_constant_p_is_the_base() -> None:
    s = torch.rand(6)
    for p in (-3.0, 0.1, 4.0):
        torch.testing.assert_close(effective_z(torch.full((6,), p), s), torch.ones(6))


def test_the_nuclear_norm_is_kept() -> None:
    p, s = torch.randn(6), torch.rand(6)
    torch.testing.assert_close((s * effective_z(p, s)).sum(), s.sum())
