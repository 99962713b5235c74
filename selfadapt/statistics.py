"""What paired scores can tell: exact permutation tests, Holm's correction, and intervals over seeds and items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit  # quantiles of the normal and of Student's distribution


def sign_flip(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p-value that two methods are equally often right on the same items.

    Each item's difference, of the means over the seeds, could as well have had the other sign: the p-value is the
    share of all sign patterns with a mean difference at least as large. With one seed each, it is McNemar's exact
    test. It speaks of these trained models on other items, not of other seeds.

    Args:
        first, second: 0 or 1, [seeds, items]; the numbers of seeds may differ.
    """
    # Whole numbers, so that the distribution of the sum can be counted.
    differences = len(second) * first.sum(0, dtype=int) - len(first) * second.sum(0, dtype=int)  # [items]
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    differences //= np.gcd.reduce(differences)
    reach = int(np.abs(differences).sum())
    chance = np.zeros(2 * reach + 1)  # of the sum being −reach … reach
    chance[reach] = 1.0
    for size in np.abs(differences):
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(differences.sum()))
    return min(1.0, float(chance[extreme].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for the number of comparisons; the adjusted p-values, in the same order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def interval(scores: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the share of right answers, for other items and, with several seeds, for other seeds.

    One seed: Wilson's. Several: Wilson's with the variance that the scores show in place of the binomial one. What the
    seeds differ by has Student's t with seeds − 1 degrees of freedom, since a few seeds say little of their spread. To
    it comes what the items differ by over and above that: their noise from seed to seed is in the seeds' means already.
    It is never narrower than if the seeds were one and the same training. `tests/selfadapt/test_statistics.py` has how
    often it holds.

    Args:
        scores: 0 or 1, [seeds, items].
    """
    seeds, items = scores.shape
    share = float(scores.mean())
    binomial = share * (1 - share)
    z = float(ndtri(0.975))
    if 1 in (seeds, items) or not binomial:
        return _wilson(share, z**2 / items)
    of_seeds, of_items = scores.mean(1), scores.mean(0)
    noise = scores - of_seeds[:, None] - of_items + share
    # Variances of the overall share, by what they come from.
    from_seeds = of_seeds.var(ddof=1) / seeds
    from_items = of_items.var(ddof=1) / items
    from_noise = float((noise**2).sum()) / ((seeds - 1) * (items - 1)) / scores.size
    both = stdtrit(seeds - 1, 0.975) ** 2 * from_seeds + z**2 * max(0.0, from_items - from_noise)
    return _wilson(share, float(max(both, z**2 * from_items)) / binomial)


def _wilson(share: float, width: float) -> tuple[float, float]:
    """Wilson's score interval; `width` is z² / n with n independent answers."""
    middle = (share + width / 2) / (1 + width)
    half = math.sqrt(width * share * (1 - share) + width**2 / 4) / (1 + width)
    return max(0.0, middle - half), min(1.0, middle + half)
