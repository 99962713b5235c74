"""The best of some candidates, without asking all of them everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]  # candidate, example

AT_ONCE = 3
"""Examples that a contender is asked at least, before the others' answers may put it out of the race."""


def race(
    ask: Callable[[Sequence[Pair]], tuple[Tensor, Tensor]], candidates: int, examples: int, places: int, round_size: int
) -> tuple[list[int], Tensor]:
    """The best of C candidates, best first, and their scores: what asking all of them all N examples would give.

    A score is the mean reward, from 0 to 1, and the mean log-likelihood, at most 0, that decides between equal rewards.
    What a candidate has not been asked can therefore bring it 1 and 0 at best. Nobody is asked any more who even so
    comes after `places` others that have been asked everything. Those who may still come first are asked first.

    Args:
        ask: the rewards and the log-likelihoods [P] of P pairs.
        places: how many of the candidates are wanted.
        round_size: pairs worth asking at once, if there are as many.

    Returns:
        The numbers of the `places` best, where the earlier comes first of two equals, and their scores [places, 2].
    """
    at_best = torch.tensor([1.0, 0.0]).repeat(candidates, examples, 1)  # [C, N, 2]
    asked = torch.zeros(candidates, examples, dtype=torch.bool)
    first = min(examples, math.ceil(max(examples / 4, round_size / candidates)))
    pairs = [(candidate, example) for candidate in range(candidates) for example in range(first)]
    while pairs:
        rows, columns = torch.tensor(pairs).T
        at_best[rows, columns] = torch.stack(ask(pairs), 1)
        asked[rows, columns] = True
        # Rounding keeps order: no score at best, summed up as the score itself is, falls below it.
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
    """Those not finished who rank before the last of `places` who are."""
    before: list[int] = []
    for candidate in ranking:
        if not finished[candidate]:
            before.append(candidate)
        elif places == 1:
            break
        else:
            places -= 1
    return before
