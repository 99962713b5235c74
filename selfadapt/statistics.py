"""What paired scores can tell: exact permutation tests, Holm's correction, and intervals over seeds and items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from experts.evaluation import Accuracy

RESAMPLES = 10_000


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
    """A 95 % interval of the share of right answers.

    One seed: Wilson's. Several: a bootstrap that draws seeds and items anew, both with replacement; with as few as
    three seeds it understates what another seed may bring.

    Args:
        scores: 0 or 1, [seeds, items].
    """
    seeds, items = scores.shape
    if seeds == 1:
        return Accuracy(int(scores.sum()), items).interval
    random = np.random.default_rng(0)
    of_seeds = random.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES)  # [R, seeds]
    of_items = random.multinomial(items, [1 / items] * items, RESAMPLES)  # [R, items]
    means = ((of_seeds @ scores) * of_items).sum(1) / math.prod(scores.shape)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
