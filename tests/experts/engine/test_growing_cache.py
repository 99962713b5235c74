"""A cache that grows in place holds what a DynamicCache would."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from experts.engine.growing_cache import ROOM, GrowingLayer, growing_cache


def both(tiny_model: Any) -> tuple[DynamicCache, DynamicCache]:
    config = tiny_model.config
    return growing_cache(config), DynamicCache(config=config)


def same(growing: DynamicCache, plain: DynamicCache) -> None:
    assert growing.get_seq_length() == plain.get_seq_length()
    for mine, other in zip(growing.layers, plain.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@pytest.mark.parametrize("lengths", [[5, 1, 1], [1] * (ROOM + 3), [2 * ROOM, 3, 2 * ROOM, 1]])
def test_it_holds_what_was_put_in(tiny_model: Any, lengths: list[int]) -> None:
    growing, plain = both(tiny_model)
    assert {type(layer) for layer in growing.layers} == {GrowingLayer}
    for length in lengths:
        for layer in range(len(growing.layers)):
            states = torch.randn(2, 3, 2, length, 4)
            got, wanted = growing.update(*states, layer), plain.update(*states, layer)
            assert torch.equal(got[0], wanted[0])
            assert torch.equal(got[1], wanted[1])
    same(growing, plain)


def test_rows_of_a_copy_go_ways_of_their_own(tiny_model: Any) -> None:
    growing, plain = both(tiny_model)

    def more(rows: int, *caches: DynamicCache) -> None:
        for layer in range(len(growing.layers)):
            states = torch.randn(2, rows, 2, 3, 4)
            for cache in caches:
                cache.update(*states, layer)

    more(3, growing, plain)
    one, other, like_one, like_other = (deepcopy(cache) for cache in (growing, growing, plain, plain))
    for cache in (one, like_one):
        cache.batch_select_indices(torch.tensor([2, 0, 0, 1]))
    more(4, one, like_one)
    more(3, other, like_other)
    for cache in (other, like_other):
        cache.crop(-2)
    more(3, other, like_other)
    for cache in (other, like_other):
        cache.batch_repeat_interleave(2)
    more(6, other, like_other)
    same(one, like_one)
    same(other, like_other)
    same(growing, plain)


def test_layers_of_another_kind_stay(tiny_model: Any) -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=4)
    assert {type(layer) for layer in growing_cache(config).layers} == {DynamicSlidingWindowLayer}
    assert {type(layer) for layer in DynamicCache(config=tiny_model.config).layers} == {DynamicLayer}
