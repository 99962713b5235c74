"""Keeps what prompts begin with: one that begins like an earlier one, under the same mixture, reads only the rest."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from experts.engine.growing_cache import GrowingLayer

BLOCK = 16
"""How many tokens have their keys and values kept or forgotten together."""


class Block(NamedTuple):
    """Some tokens that have been read after those before them."""

    number: int
    states: Sequence[tuple[Tensor, Tensor]]
    """Keys and values [heads, BLOCK, width] of every layer."""


class KeptPrefixes:
    """Keys and values of prompts, block by block. A beginning that several prompts share is kept once.

    A block is found by its tokens and by the block before it; the first, by the mixture that it was read under. When
    there is no more room, the least recently used blocks go, and the end of a prompt before its beginning.

    Args:
        tokens: the most tokens that are kept.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._blocks: OrderedDict[Hashable, Block] = OrderedDict()  # most recently used last
        self._numbers = itertools.count()

    def find(self, under: Hashable, ids: Sequence[int]) -> list[Block]:
        """The kept blocks that a prompt begins with; `under` names its mixture."""
        found: list[Block] = []
        keys: list[Hashable] = []
        before = under
        for own in _parts(ids):
            key = (before, own)
            if (block := self._blocks.get(key)) is None:
                break
            found.append(block)
            keys.append(key)
            before = block.number
        self._used(keys)
        return found

    def keep(self, under: Hashable, ids: Sequence[int], cache: DynamicCache, row: int) -> None:
        """Keeps a prompt, which must be the last that the row of a cache of `GrowingLayer` has read."""
        end = cache.get_seq_length()
        keys: list[Hashable] = []
        before = under
        for place, own in enumerate(_parts(ids[: self.tokens])):
            key = (before, own)
            if key not in self._blocks:
                start = end - len(ids) + place * BLOCK
                states = [
                    tuple(each[row, :, start : start + BLOCK].clone() for each in cast(GrowingLayer, layer).states)
                    for layer in cache.layers
                ]
                self._blocks[key] = Block(next(self._numbers), cast(list[tuple[Tensor, Tensor]], states))
            keys.append(key)
            before = self._blocks[key].number
        self._used(keys)
        while len(self._blocks) * BLOCK > self.tokens:
            self._blocks.popitem(last=False)

    def forget(self) -> None:
        """Forgets everything, because experts have changed."""
        self._blocks.clear()

    def _used(self, keys: Sequence[Hashable]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def begin(cache: DynamicCache, blocks: Sequence[Sequence[Block]], lengths: Sequence[int]) -> None:
    """Puts the first tokens of each row's blocks, as many as `lengths` says, into an empty cache, ending together."""
    width = max(lengths)
    some = next(own for own in blocks if own)[0]
    for depth, layer in enumerate(cache.layers):
        keys, values = (each.new_zeros(len(blocks), each.shape[0], width, each.shape[2]) for each in some.states[depth])
        for row, (own, length) in enumerate(zip(blocks, lengths, strict=True)):
            if length:
                for into, each in zip(
                    (keys, values), zip(*(block.states[depth] for block in own), strict=True), strict=True
                ):
                    into[row, :, width - length :] = torch.cat(each, 1)[:, :length]
        cast(GrowingLayer, layer).update(keys, values)


def _parts(ids: Sequence[int]) -> list[tuple[int, ...]]:
    """The tokens in whole blocks; the rest is left out."""
    return [tuple(ids[start : start + BLOCK]) for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
