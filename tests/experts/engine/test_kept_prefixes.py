"""What is kept of prompts: equal beginnings once, and not more than may be."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from experts.engine.growing_cache import GrowingLayer
from experts.engine.kept_prefixes import BLOCK, KeptPrefixes, begin


def cache_of(rows: list[list[int]], layers: int = 2) -> DynamicCache:
    """A cache whose keys and values tell the tokens that were read, in rows padded to the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[-1] * (width - len(row)) + row for row in rows], dtype=torch.float32)
    cache = DynamicCache()
    cache.layers = [GrowingLayer() for _ in range(layers)]
    for depth, layer in enumerate(cache.layers):
        states = ids[:, None, :, None].expand(-1, 3, -1, 4) * (depth + 1)
        layer.update(states, 10 * states)
    return cache


def tokens(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(50) for _ in range(length)]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_was_read(seed: int) -> None:
    draw = random.Random(seed)
    kept = KeptPrefixes(tokens=1 << 20)
    heads = [tokens(draw, draw.randint(0, 70)) for _ in range(4)]
    known: dict[str, list[list[int]]] = {"one": [], "other": []}
    for _ in range(30):
        rows = [draw.choice(heads) + tokens(draw, draw.randint(1, 40)) for _ in range(3)]
        under = draw.choice([*known])
        blocks = [kept.find(under, row) for row in rows]
        for row, found in zip(rows, blocks, strict=True):
            shared = [len(shared_blocks(row, other)) for other in known[under]]
            assert len(found) == max(shared, default=0) // BLOCK
        lengths = [draw.randint(0, BLOCK * len(found)) for found in blocks]
        if max(lengths):
            cache = DynamicCache()
            cache.layers = [GrowingLayer(), GrowingLayer()]
            begin(cache, blocks, lengths)
            for depth, layer in enumerate(cache.layers):
                assert layer.keys is not None
                assert layer.values is not None
                for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                    expected = [0] * (max(lengths) - length) + row[:length]
                    assert (layer.keys[place, 1, :, 2] / (depth + 1)).tolist() == expected
                    assert torch.equal(layer.values[place], 10 * layer.keys[place])
        whole = cache_of(rows)
        for place, row in enumerate(rows):
            kept.keep(under, row, whole, place)
            known[under].append(row)


def shared_blocks(one: list[int], other: list[int]) -> list[int]:
    """What both begin with, in whole blocks."""
    shared = 0
    for own, others in zip(one, other, strict=False):
        if own != others:
            break
        shared += 1
    return one[: shared // BLOCK * BLOCK]


def test_of_too_much_what_was_used_longest_ago_goes_and_ends_before_beginnings() -> None:
    draw = random.Random(0)
    kept = KeptPrefixes(tokens=6 * BLOCK + 3)
    first, second, third = (tokens(draw, length * BLOCK + 5) for length in (3, 3, 2))
    for row in (first, second):
        kept.keep("base", row, cache_of([row]), 0)
    assert [len(kept.find("base", row)) for row in (second, first)] == [3, 3]
    kept.keep("base", third, cache_of([third]), 0)
    assert [len(kept.find("base", row)) for row in (first, second, third)] == [3, 1, 2]
    longer = tokens(draw, 9 * BLOCK)
    kept.keep("base", longer, cache_of([longer]), 0)
    assert [len(kept.find("base", row)) for row in (first, second, third, longer)] == [0, 0, 0, 6]
    kept.forget()
    assert not kept.find("base", longer)
