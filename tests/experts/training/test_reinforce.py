"""The formulas of section 3.2, against what they say written out by hand, and against exact gradients."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from experts.training.reinforce import (
    MOST_WEIGHT,
    Baseline,
    advantages,
    importance,
    kl_to_base,
    policy_loss,
    signed,
)

REWARDS = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0])  # two prompts, three samples each


@pytest.mark.parametrize(
    ("baseline", "wanted"),
    [
        ("leave-one-out", [2.0, -1.0, -1.0, 0.0, 0.0, 0.0]),
        ("batch-mean", [2 / 3, -4 / 3, -4 / 3, 2 / 3, 2 / 3, 2 / 3]),
        ("none", REWARDS.tolist()),
    ],
)
def test_advantages_by_hand(baseline: Baseline, wanted: list[float]) -> None:
    assert advantages(REWARDS, 3, baseline).tolist() == pytest.approx(wanted)


def test_a_leave_one_out_baseline_does_not_depend_on_its_own_sample() -> None:
    before = REWARDS - advantages(REWARDS, 3, "leave-one-out")
    changed = REWARDS.clone()
    changed[1] += 5
    after = changed - advantages(changed, 3, "leave-one-out")
    assert after[1] == before[1]
    assert after[0] == before[0] + 2.5
    assert torch.equal(after[3:], before[3:])


def test_kl_and_loss_count_the_tokens_of_the_completion_alone() -> None:
    expert, base = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -0.5, -0.5]]), torch.full((2, 3), -1.0)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert kl_to_base(expert, base, mask).tolist() == [-1.0, 1.5]
    assert policy_loss(expert, mask, torch.tensor([2.0, -1.0])).item() == pytest.approx(-(2 * -3.0 - 1 * -1.5) / 2)


def exact_samples(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pairs of samples of one categorical token: their tokens [N, 2], log-likelihoods [N, 2], probabilities [N]."""
    pairs = torch.tensor(list(product(range(len(logits)), repeat=2)))
    logps = logits.log_softmax(0)[pairs]
    return pairs, logps, logps.sum(1).exp().detach()


@pytest.mark.parametrize("baseline", ["leave-one-out", "none"])
@pytest.mark.parametrize("coefficient", [0.0, 0.7])
def test_the_loss_has_the_gradient_of_the_expected_reward_less_kl(baseline: Baseline, coefficient: float) -> None:
    """J is summed up over every possible batch of two samples, each as likely as it is: no sampling, no tolerance."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
    base = torch.randn(4, dtype=torch.float64, generator=generator).log_softmax(0)
    reward = torch.tensor([1.0, -1.0, -1.0, 0.25], dtype=torch.float64)

    policy = logits.softmax(0)
    objective = policy @ reward - coefficient * (policy @ (logits.log_softmax(0) - base))
    (wanted,) = torch.autograd.grad(-objective, logits)

    pairs, logps, likely = exact_samples(logits)
    mask = torch.ones(2, 1)
    loss = torch.zeros((), dtype=torch.float64)
    for tokens, own, probability in zip(pairs, logps, likely, strict=True):
        kl = kl_to_base(own.detach()[:, None], base[tokens][:, None], mask)
        weights = advantages(reward[tokens] - coefficient * kl, 2, baseline)
        loss = loss + probability * policy_loss(own[:, None], mask, weights)
    (got,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(got, wanted)


def test_a_score_below_one_is_wrong() -> None:
    assert signed([1.0, 0.99, 0.0], wrong=-0.1) == [1.0, -0.1, -0.1]
    assert signed([3.0, -2.0, math.nan]) == pytest.approx([1.0, -1.0, math.nan], nan_ok=True)


@pytest.mark.parametrize("baseline", ["leave-one-out", "batch-mean", "none"])
def test_a_completion_without_an_opinion_teaches_nothing(baseline: Baseline) -> None:
    rewards = torch.tensor([1.0, -1.0, math.nan, 2.0, math.nan, math.nan])
    found = advantages(rewards, 3, baseline)
    assert found[[2, 4, 5]].tolist() == [0, 0, 0]
    # Leave-one-out has no other to compare the single one of a prompt with.
    wanted = {"leave-one-out": [2, -2, 0], "batch-mean": [1 / 3, -5 / 3, 4 / 3], "none": [1, -1, 2]}[baseline]
    assert found[[0, 1, 3]].tolist() == pytest.approx(wanted)


def test_what_another_engine_draws_is_weighted_to_the_policy_s_own_expectation() -> None:
    """E_μ[w · f] = E_π[f] over all completions of two tokens from three, as long as no weight is cut."""
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(2, 3, generator=generator).log_softmax(1)  # log π at each of two places
    sampler = (policy + 0.1 * torch.randn(2, 3, generator=generator)).log_softmax(1)
    pairs = torch.tensor([*product(range(3), repeat=2)])  # [9, 2]
    mask, f = torch.ones(9, 2), torch.randn(9, generator=generator)
    own, theirs = (logps.gather(1, pairs.T).T for logps in (policy, sampler))  # [9, 2]
    weights = importance(own, theirs, mask)
    assert (theirs.sum(1).exp() * weights * f).sum() == pytest.approx((own.sum(1).exp() * f).sum())
    assert importance(own, own, mask).tolist() == [1.0] * 9
    assert importance(own + 5, theirs, mask).max() == MOST_WEIGHT
    assert torch.equal(importance(own, theirs, mask * 0), torch.ones(9))
