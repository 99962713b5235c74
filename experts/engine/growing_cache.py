"""A key-value cache that grows in place. A DynamicCache is copied whole for every token that is written."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens that there is room for after a copy."""


class GrowingLayer(DynamicLayer):
    """Keys and values [B, heads, tokens, width] at the beginning of larger tensors, whose rest the next tokens fill."""

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
        # What was selected or repeated since stands elsewhere.
        if large is None or large[0].data_ptr() != self.keys.data_ptr() or after > large[0].shape[2]:
            large = (_room(key_states, after), _room(value_states, after))
            if before:
                large[0][:, :, :before], large[1][:, :, :before] = self.keys, self.values
        large[0][:, :, before:after], large[1][:, :, before:after] = key_states, value_states
        self.large, self.keys, self.values = large, large[0][:, :, :after], large[1][:, :, :after]
        return self.keys, self.values


def _room(states: Tensor, tokens: int) -> Tensor:
    return states.new_empty(*states.shape[:2], tokens + ROOM, states.shape[3])


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers that see a window only, or keep something else, stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
