"""What scores can tell: shares and means with their intervals, and tests of differences on the same items.

An `Accuracy` is one model's on n problems; `interval` and `sign_flip` are for several seeds, an `Estimate` for tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Accuracy:
    """`right` of `n` problems, with a 95 % Wilson score interval."""

    right: int
    n: int
    reward: float | None = None
    """The mean reward, if the user's own function gives it: then the best has the highest, however many are right."""

    @property
    def value(self) -> float:
        return self.right / self.n

    def __float__(self) -> float:
        return self.value if self.reward is None else self.reward

    @property
    def interval(self) -> tuple[float, float]:
        return _wilson(self.value, Z**2 / self.n)

    def __str__(self) -> str:
        low, high = self.interval
        reward = "" if self.reward is None else f"mean reward {self.reward:.3f}, right "
        return f"{reward}{self.value:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {self.n})"


@dataclass(frozen=True)
class Loss:
    """The mean of n rows' losses, each in nats a token of the row's own answer."""

    value: float
    n: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"loss {self.value:.4f} nats a token (n = {self.n})"


def loss(losses: Sequence[float]) -> Loss:
    return Loss(math.fsum(losses) / len(losses), len(losses))


def sign_test(before: Sequence[float], after: Sequence[float]) -> float:
    """The exact two-sided p-value that equally many rows lose and gain, whatever the amounts."""
    lower, higher = (sum(sign * (a - b) < 0 for b, a in zip(before, after, strict=True)) for sign in (1, -1))
    return _fair(lower, higher)


def accuracy(scores: Sequence[float], *, rewards: bool = False) -> Accuracy:
    """The share of problems solved, with a score of 1 or more; partial credit counts in training, but not here.

    Args:
        rewards: whether the scores are rewards from the user's own function. Then their mean counts, leaving out those
            without an opinion (NaN).
    """
    opinions = [score for score in scores if not math.isnan(score)]
    mean = math.fsum(opinions) / len(opinions) if rewards and opinions else None
    return Accuracy(sum(score >= 1 for score in scores), len(scores), mean)


def constant_answer(answers: Sequence[Any]) -> Accuracy:
    """What always giving the most common right answer would score.

    An expert that only beats the base may have learned no more than that. If there are no answers, nothing is right.
    """
    if not any(answer or answer == 0 for answer in answers):  # position 0, or False, is an answer
        return Accuracy(0, len(answers))
    return Accuracy(Counter(map(repr, answers)).most_common(1)[0][1], len(answers))  # they may be lists


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """The exact two-sided McNemar p-value that two sets of scores on the same problems differ only by chance."""
    gained = sum(b < 1 <= a for b, a in zip(before, after, strict=True))
    lost = sum(a < 1 <= b for b, a in zip(before, after, strict=True))
    return _fair(gained, lost)


def _fair(heads: int, tails: int) -> float:
    """The exact two-sided p-value that a coin is fair."""
    from scipy.stats import binomtest

    return float(binomtest(heads, heads + tails).pvalue) if heads + tails else 1.0


def sign_flip(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p-value that two methods are equally often right on the same items.

    If they are, the difference between the means over seeds could as well have the other sign on each item; the p-value
    is the share of all sign patterns with a mean difference at least as large. With one seed each, it is McNemar's
    exact test. It says something about these trained models on other items, not about other seeds.

    Args:
        first, second: 0 or 1, [seeds, items]; the numbers of seeds may differ.
    """
    # Integers, so that the distribution of the sum can be counted.
    differences = len(second) * first.sum(0, dtype=int) - len(first) * second.sum(0, dtype=int)  # [items]
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    differences //= np.gcd.reduce(differences)
    reach = int(np.abs(differences).sum())
    probability = np.zeros(2 * reach + 1)  # of the sum being −reach … reach
    probability[reach] = 1.0
    for size in np.abs(differences):
        probability = (np.roll(probability, size) + np.roll(probability, -size)) / 2
    extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(differences.sum()))
    return min(1.0, float(probability[extreme].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for the number of comparisons; the adjusted p-values, in the same order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def interval(scores: np.ndarray) -> tuple[float, float]:
    """A 95 % interval for the share of right answers, over other items and, with several seeds, over other seeds.

    For one seed it is Wilson's; for several, Wilson's with the variance that the scores show in place of the binomial
    one. The seeds' part has Student's t with seeds − 1 degrees of freedom, since a few seeds say little about their
    spread. The items' part is added to it, without their noise from seed to seed, which is already in the seeds' means.
    The interval is never narrower than if all seeds were the same training. How often it holds is tested in
    `tests/experts/training/test_statistics.py`.

    Args:
        scores: 0 or 1, [seeds, items].
    """
    seeds, items = scores.shape
    share = float(scores.mean())
    binomial = share * (1 - share)
    if 1 in (seeds, items) or not binomial:
        return _wilson(share, Z**2 / items)
    from scipy.special import stdtrit  # quantiles of Student's distribution; training needs no scipy

    of_seeds, of_items = scores.mean(1), scores.mean(0)
    noise = scores - of_seeds[:, None] - of_items + share
    # Variances of the overall share, by their source.
    from_seeds = of_seeds.var(ddof=1) / seeds
    from_items = of_items.var(ddof=1) / items
    from_noise = float((noise**2).sum()) / ((seeds - 1) * (items - 1)) / scores.size
    both = stdtrit(seeds - 1, 0.975) ** 2 * from_seeds + Z**2 * max(0.0, from_items - from_noise)
    return _wilson(share, float(max(both, Z**2 * from_items)) / binomial)


def _wilson(share: float, width: float) -> tuple[float, float]:
    """Wilson's score interval; `width` is z² / n with n independent answers."""
    middle = (share + width / 2) / (1 + width)
    half = math.sqrt(width * share * (1 - share) + width**2 / 4) / (1 + width)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_is_zero(values: Sequence[float]) -> float:
    """The two-sided p-value of a sign-flip permutation test that values are as likely below 0 as above it.

    Exact for up to sixteen values; beyond, 100,000 sign patterns are drawn, always the same ones.
    """
    from scipy.stats import permutation_test

    test = permutation_test(
        (np.asarray(values),), np.mean, permutation_type="samples", vectorized=True, n_resamples=100_000, rng=0
    )
    return float(test.pvalue)


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float | None = None
    """For a difference: the p-value that it is 0."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def over_tasks(values: Mapping[str, Sequence[float]], *, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The mean over tasks of their means, with the percentile bootstrap that draws tasks.

    Args:
        values: task → one value per instance.
    """
    means = np.array([np.mean(own) for own in values.values()])
    drawn = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [0.025, 0.975])
    return Estimate(float(means.mean()), float(low), float(high))
