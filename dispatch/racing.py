"""Finds the best of some candidates without asking all of them everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]  # candidate, example

AT_ONCE = 3
"""The fewest examples to ask a contender at once, before the others' answers may put it out of the race."""


def race(
    ask: Callable[[Sequence[Pair]], tuple[Tensor, Tensor]], candidates: int, examples: int, places: int, round_size: int
) -> tuple[list[int], Tensor]:
    """The best of C candidates, best first, and their scores, as if all of them had been asked all N examples.

    A score is the mean reward, from 0 to 1, and the mean log-likelihood, at most 0, which decides between equal
    rewards. An example not yet asked can therefore earn 1 and 0 at best. A candidate that even so ranks behind `places`
    others that have been asked everything is asked no more. Those that may still come first are asked first.

    Args:
        ask: gives the rewards and the log-likelihoods [P] of P pairs.
        places: how many of the candidates are wanted.
        round_size: pairs worth asking at once, if there are that many.

    Returns:
        The numbers of the `places` best, the earlier of two equals first, and their scores [places, 2].
    """
    at_best = torch.tensor([1.0, 0.0]).repeat(candidates, examples, 1)  # [C, N, 2]
    asked = torch.zeros(candidates, examples, dtype=torch.bool)
    first = min(examples, math.ceil(max(examples / 4, round_size / candidates)))
    pairs = [(candidate, example) for candidate in range(candidates) for example in range(first)]
    while pairs:
        rows, columns = torch.tensor(pairs).T
        at_best[rows, columns] = torch.stack(ask(pairs), 1)
        asked[rows, columns] = True
        # Rounding keeps the order: a best possible score, summed as the final one is, never falls below it.
        scores = at_best.mean(1)
        keys = [tuple(score) for score in scores.tolist()]
        ranking = sorted(range(candidates), key=lambda candidate: keys[candidate], reverse=True)
        contenders = _contenders(ranking, asked.all(1).tolist(), places)[: max(1, round_size // AT_ONCE)]
        pairs = []
        for candidate in contenders:
            left = (~asked[candidate]).nonzero()[:, 0].tolist()
            pairs += [(candidate, example) for example in left[: math.ceil(round_size / len(contenders))]]
    return ranking[:places], scores[ranking[:places]]


def _contenders(ranking: Sequence[int], finished: Sequence[bool], places: int) -> list[int]:
    """The unfinished candidates that rank before the `places`-th finished one."""
    before: list[int] = []
    for candidate in ranking:
        if not finished[candidate]:
            before.append(candidate)
        elif places == 1:
            break
        else:
            places -= 1
    return before
