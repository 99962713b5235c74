from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.special import ndtri

from experts.training.statistics import Accuracy, accuracy, constant_answer, holm, interval, mcnemar, sign_flip


def test_wilson_interval_against_the_textbook() -> None:
    # Wilson (1927): (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), with z = 1.96
    low, high = Accuracy(81, 263).interval
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert Accuracy(0, 10).interval[0] == pytest.approx(0, abs=1e-12)


def test_partial_credit_does_not_count() -> None:
    assert accuracy([1.0, 0.99, 0.0, 1.0]) == Accuracy(2, 4)


def test_rewards_of_ones_own_compare_by_their_mean() -> None:
    scores = [3.0, -2.0, math.nan, 0.5]
    assert accuracy(scores, rewards=True) == Accuracy(1, 4, 0.5)
    assert float(accuracy(scores, rewards=True)) == 0.5
    assert accuracy([math.nan], rewards=True) == Accuracy(0, 1)
    assert "mean reward 0.500, right 25.0%" in str(accuracy(scores, rewards=True))
    assert constant_answer(["", ""]) == Accuracy(0, 2)


def test_a_constant_answer_is_as_right_as_the_most_common_one() -> None:
    assert constant_answer(["1", "2", "1", "3", "1"]) == Accuracy(3, 5)
    assert constant_answer([0, 0]) == Accuracy(2, 2)


def test_mcnemar_is_the_binomial_test_of_the_changed() -> None:
    before = [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    after = [1.0] * 8 + [0.0] * 2 + [1.0] * 5
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(before, before) == 1.0


def scores(seeds: int, items: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, items)) < share).astype(int)


@pytest.mark.parametrize("seed", range(5))
def test_with_one_seed_it_is_mcnemars_exact_test(seed: int) -> None:
    first, second = scores(1, 80, 0.4, seed), scores(1, 80, 0.55, seed + 100)
    assert sign_flip(first, second) == pytest.approx(mcnemar(list(second[0]), list(first[0])), rel=1e-9)


def test_with_several_seeds_it_counts_every_pattern_of_signs() -> None:
    first, second = scores(3, 8, 0.7, 0), scores(2, 8, 0.3, 1)
    differences = first.mean(0) - second.mean(0)
    sums = [abs(np.dot(signs, differences)) for signs in product([1, -1], repeat=8)]
    share = np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums])
    assert sign_flip(first, second) == pytest.approx(share)
    assert sign_flip(second, first) == pytest.approx(share)


def test_repeating_a_seed_adds_no_evidence() -> None:
    first, second = scores(1, 60, 0.6, 0), scores(1, 60, 0.4, 1)
    assert sign_flip(np.repeat(first, 3, 0), second) == pytest.approx(sign_flip(first, second))
    assert sign_flip(first, first) == 1.0


def test_holm() -> None:
    # Holm's procedure by hand: 3 × 0.01, then the larger of that and 2 × 0.03, then of that and 0.04.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_has_wilsons_interval() -> None:
    for share in (0.0, 0.03, 0.5, 1.0):
        one = scores(1, 100, share, 0)
        assert interval(one) == pytest.approx(Accuracy(int(one.sum()), 100).interval)


def test_equal_seeds_are_as_sure_as_one() -> None:
    one = scores(1, 100, 0.5, 0)
    assert interval(np.repeat(one, 3, 0)) == pytest.approx(interval(one), abs=0.001)


def test_seeds_that_disagree_leave_nearly_everything_open() -> None:
    low, high = interval(np.stack([np.zeros(100, int), np.ones(100, int), scores(1, 100, 0.5, 0)[0]]))
    assert low < 0.1
    assert high > 0.9


def test_an_interval_needs_neither_right_answers_nor_many_items() -> None:
    none = np.zeros((3, 60), int)
    assert interval(none) == pytest.approx(Accuracy(0, 60).interval)
    assert interval(1 - none) == pytest.approx(Accuracy(60, 60).interval)
    low, high = interval(np.array([[1], [0], [1]]))
    assert 0 <= low < 2 / 3 < high <= 1


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("hardness", [0.0, 0.6])  # how much of an answer is the item's doing, whoever gives it
@pytest.mark.parametrize(
    ("share", "spread", "items", "most"),
    [
        (0.6, 0.1, 256, 0.98),
        (0.6, 0.1, 60, 0.98),
        (0.8, 0.1, 128, 0.98),
        (0.6, 0.03, 256, 0.98),
        # Three seeds cannot tell that they are alike, and few items or mistakes are coarse: wider than need be.
        (0.6, 0.0, 256, 0.995),
        (0.6, 0.0, 40, 0.995),
        (0.97, 0.01, 256, 0.995),
        (0.05, 0.03, 60, 0.995),
        (0.02, 0.0, 60, 1.0),
    ],
)
def test_a_95_percent_interval_holds_the_share_in_95_of_100_cases(
    share: float, spread: float, items: int, most: float, hardness: float, seeds: int
) -> None:
    random, times = np.random.default_rng(1), 1000
    shares = np.full((times, seeds), share)
    if spread:
        total = share * (1 - share) / spread**2 - 1
        shares = random.beta(share * total, (1 - share) * total, shares.shape)
    ease = math.sqrt(hardness) * random.standard_normal((times, 1, items))
    luck = math.sqrt(1 - hardness) * random.standard_normal((times, seeds, items))
    answers = (ease + luck < ndtri(shares)[:, :, None]).astype(int)
    intervals = np.array([interval(each) for each in answers])
    held = float(((intervals[:, 0] <= share) & (share <= intervals[:, 1])).mean())
    assert 0.93 <= held <= most + (0.015 if seeds == 2 else 0)
