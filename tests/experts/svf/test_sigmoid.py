"""z from a sigmoid: what stays as it was, and that the optimiser of p follows its gradient."""

from __future__ import annotations

import copy

import torch
from torch import nn

from experts.svf.sigmoid import INITIAL_P, SigmoidAdamW, effective_z


def test_any_constant_p_is_the_base() -> None:
    s = torch.rand(6)
    for p in (-3.0, 0.1, 4.0):
        torch.testing.assert_close(effective_z(torch.full((6,), p), s), torch.ones(6))


def test_the_nuclear_norm_is_kept() -> None:
    p, s = torch.randn(6), torch.rand(6)
    torch.testing.assert_close((s * effective_z(p, s)).sum(), s.sum())


def test_a_matrix_of_zeros_has_nothing_to_rescale() -> None:
    s, zeros = torch.rand(6), torch.zeros(6)
    z, still = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    optimizer = SigmoidAdamW([(z, s), (still, zeros)], lr=0.05, max_grad_norm=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        ((z - torch.rand(6)).square().sum() + (still * zeros).sum()).backward()
        optimizer.step()
    assert torch.equal(still, torch.ones(6))
    assert torch.isfinite(z).all()
    assert not torch.equal(z, torch.ones(6))


def test_steps_equal_adamw_through_the_formula() -> None:
    torch.manual_seed(0)
    s, target = torch.rand(6), torch.rand(6)
    z = nn.Parameter(torch.ones(6))
    ours = SigmoidAdamW([(z, s)], lr=0.05, max_grad_norm=0.5)
    p = nn.Parameter(torch.full((6,), INITIAL_P))
    reference = torch.optim.AdamW([p], lr=0.05, weight_decay=0.0)
    for _ in range(5):
        ours.zero_grad()
        (z - target).square().sum().backward()
        ours.step()
        reference.zero_grad()
        (effective_z(p, s) - target).square().sum().backward()
        nn.utils.clip_grad_norm_([p], 0.5)
        reference.step()
        torch.testing.assert_close(z, effective_z(p, s))


def test_state_survives_a_save() -> None:
    torch.manual_seed(0)
    s, target = torch.rand(6), torch.rand(6)

    def steps(optimizer: SigmoidAdamW, z: nn.Parameter, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            (z - target).square().sum().backward()
            optimizer.step()

    z = nn.Parameter(torch.ones(6))
    whole = SigmoidAdamW([(z, s)], lr=0.05, max_grad_norm=0)
    steps(whole, z, 3)
    saved, z_then = copy.deepcopy(whole.state_dict()), z.detach().clone()
    steps(whole, z, 3)
    z_again = nn.Parameter(z_then)
    resumed = SigmoidAdamW([(z_again, s)], lr=0.05, max_grad_norm=0)
    resumed.load_state_dict(saved)
    steps(resumed, z_again, 3)
    assert torch.equal(z, z_again)
