"""A key-value cache that grows in place. A DynamicCache is copied as a whole for every token that is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""The tokens that a copy leaves room for."""


class GrowingLayer(DynamicLayer):
    """Keys and values [B, heads, tokens, width] at the start of larger tensors; the next tokens fill the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.large: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        large = self.large
        # Keys and values selected or repeated since then lie elsewhere.
        if large is None or large[0].data_ptr() != self.keys.data_ptr() or after > large[0].shape[2]:
            large = (_room(key_states, after), _room(value_states, after))
            if before:
                large[0][:, :, :before], large[1][:, :, :before] = self.keys, self.values
        large[0][:, :, before:after], large[1][:, :, before:after] = key_states, value_states
        self.large, self.keys, self.values = large, large[0][:, :, :after], large[1][:, :, :after]
        return self.keys, self.values

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def keep(self, rows: Tensor, first: int) -> None:
        """Keeps some rows, without their `first` first places."""
        keys, values = self.states
        self._put([keys[rows, :, first:]], [values[rows, :, first:]])

    def extend(self, other: GrowingLayer) -> None:
        """Takes over the rows of another layer. The last places of both are aligned; the shorter is padded in front."""
        keys, values = zip(self.states, other.states, strict=True)
        other.keys = other.values = other.large = None  # freed layer by layer, or both caches would be held twice
        self._put(keys, values)

    def _put(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.large = (_together(keys), _together(values))
        tokens = max(states.shape[2] for states in keys)
        self.keys, self.values = self.large[0][:, :, :tokens], self.large[1][:, :, :tokens]


def _together(blocks: Sequence[Tensor]) -> Tensor:
    """Stacks blocks of rows [B, heads, tokens, width] so that they end at the same place, with room behind."""
    tokens = max(block.shape[2] for block in blocks)
    large = blocks[0].new_empty(sum(map(len, blocks)), blocks[0].shape[1], tokens + ROOM, blocks[0].shape[3])
    start = 0
    for block in blocks:
        rows = large[start : start + len(block)]
        rows[:, :, : tokens - block.shape[2]] = 0  # even what a mask hides must be finite
        rows[:, :, tokens - block.shape[2] : tokens] = block
        start += len(block)
    return large


def select(cache: DynamicCache, rows: Tensor, first: int) -> None:
    """Keeps some rows of a cache; without their first places, if all its layers are `GrowingLayer`."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.keep(rows, first)
        else:
            cast(Any, layer).batch_select_indices(rows)


def join(cache: DynamicCache, other: DynamicCache) -> None:
    """Adds the rows of another cache to `cache`; the last places of both are aligned."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        cast(GrowingLayer, layer).extend(cast(GrowingLayer, added))


def _room(states: Tensor, tokens: int) -> Tensor:
    return states.new_empty(*states.shape[:2], tokens + ROOM, states.shape[3])


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers that only see a window, or keep something else, stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
