"""A race is won by whom asking everybody everything would choose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dispatch.racing import Pair, race


class Table:
    """Rewards and log-likelihoods [C, N] that are looked up, and what was."""

    def __init__(self, rewards: Tensor, likelihoods: Tensor) -> None:
        self.rewards, self.likelihoods = rewards, likelihoods
        self.asked: list[Pair] = []
        self.rounds: list[int] = []

    def __call__(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        self.asked += pairs
        self.rounds.append(len(pairs))
        rows, columns = torch.tensor(pairs).T
        return self.rewards[rows, columns], self.likelihoods[rows, columns]

    def race(self, places: int, round_size: int) -> tuple[list[int], Tensor]:
        return race(self, *self.rewards.shape, places=places, round_size=round_size)

    def exhaustive(self, places: int) -> tuple[list[int], Tensor]:
        scores = torch.stack([self.rewards, self.likelihoods], 2).mean(1)
        best = sorted(range(len(scores)), key=lambda c: tuple(scores[c].tolist()), reverse=True)[:places]
        return best, scores[best]


def random_table(seed: int) -> Table:
    generator = torch.Generator().manual_seed(seed)
    candidates, examples = (int(torch.randint(1, most, (1,), generator=generator)) for most in (34, 12))
    skill = torch.rand(candidates, 1, generator=generator) ** (seed % 4)
    rewards = torch.rand(candidates, examples, generator=generator)
    if seed % 3:
        rewards = (rewards < skill).float()  # right or wrong, where ties abound
    likelihoods = -8 * torch.rand(candidates, examples, generator=generator)
    if seed % 5 == 0:
        likelihoods = likelihoods.round()
    if seed % 7 == 0:
        likelihoods[rewards == 0] = -torch.inf
    if seed % 2:  # twins
        rewards[candidates // 2 :], likelihoods[candidates // 2 :] = rewards[:1], likelihoods[:1]
    return Table(rewards, likelihoods)


@pytest.mark.parametrize("round_size", [1, 3, 24, 1000])
def test_the_winners_are_those_of_asking_everybody_everything(round_size: int) -> None:
    for seed in range(105):
        size = len(random_table(seed).rewards)
        for places in {1, -(-size // 4), size}:
            table = random_table(seed)
            best, scores = table.race(places, round_size)
            wanted, of_wanted = table.exhaustive(places)
            assert best == wanted
            assert torch.equal(scores, of_wanted)
            assert len({*table.asked}) == len(table.asked)


def test_who_cannot_win_any_more_is_not_asked() -> None:
    rewards = torch.zeros(32, 10)
    rewards[[3, 17]] = 1
    table = Table(rewards, -torch.ones(32, 10))
    assert table.race(2, round_size=1)[0] == [3, 17]
    assert len(table.asked) == 32 * 3 + 2 * 7
    table = Table(rewards, -torch.ones(32, 10))
    assert table.race(2, round_size=24)[0] == [3, 17]
    assert len(table.asked) < 0.6 * 320  # filling rounds costs some


def test_a_wave_that_all_pairs_fit_in_asks_them_all_at_once() -> None:
    table = random_table(1)
    table.race(1, table.rewards.numel())
    assert table.rounds == [table.rewards.numel()]


def test_all_places_need_all_answers() -> None:
    table = random_table(2)
    table.race(len(table.rewards), 8)
    assert len(table.asked) == table.rewards.numel()
