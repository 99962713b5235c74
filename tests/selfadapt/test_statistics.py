from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from experts.evaluation import Accuracy, mcnemar
from selfadapt.statistics import holm, interval, sign_flip


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


def test_intervals_hold_seeds_and_items() -> None:
    one = scores(1, 100, 0.5, 0)
    assert interval(one) == Accuracy(int(one.sum()), 100).interval
    low, high = interval(np.repeat(one, 3, 0))  # equal seeds: the items alone
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    # Seeds that disagree widen it, although the mean is surer of each item.
    differing = np.stack([np.zeros(100, int), np.ones(100, int), one[0]])
    low, high = interval(differing)
    assert low < 0.2
    assert high > 0.8
