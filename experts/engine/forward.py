"""One forward pass of a model: under a mixture, in evaluation mode, after a cache, and for only the logits needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import cast
from weakref import WeakKeyDictionary

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFModel

_evaluated: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # models to train again → open `evaluating` blocks
_switching = RLock()

RENAMED = (5, 24)
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= RENAMED else "past_key_values"
"""What models call the cache that they take and return."""


def mixed(model: PreTrainedModel | PeftModel, mixture: Mixture, *, merge: bool = True) -> AbstractContextManager[None]:
    """Within the block, row b of every batch that this thread runs is under row b of the mixture.

    Args:
        merge: whether rows that all share one mixture run on a merged weight.

    Raises:
        UserError: if the mixture names an expert that the model does not carry.
    """
    if isinstance(model, PeftModel) and isinstance(model.base_model, SVFModel):
        return model.base_model.mixed(mixture.names, mixture.weights, mixture.per_matrix, merge=merge)
    if not mixture.is_base:
        raise UserError(
            "this model carries no experts, so only the base can answer; attach the mixture's experts first"
        )
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode, until the last thread in such a block leaves it."""
    with _switching:
        switched = model.training or model in _evaluated
        if switched:
            model.eval()
            _evaluated[model] = _evaluated.get(model, 0) + 1
    try:
        yield
    finally:
        if switched:
            with _switching:
                _evaluated[model] -= 1
                if not _evaluated[model]:
                    del _evaluated[model]
                    model.train()


def forward_cached(model: PreTrainedModel | PeftModel, ids: Tensor, mask: Tensor, cache: Cache, keep: int) -> Tensor:
    """The logits [B, keep, V], float32, at the last `keep` of the tokens [B, T] that follow those in the cache.

    `mask` covers both and may have holes. The cache is extended.
    """
    output = cast(nn.Module, model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask)[:, -ids.shape[1] :],
        logits_to_keep=last_positions(keep),
        **{CACHE: cache},
    )
    return output.logits.float()


def allows_holes(config: PreTrainedConfig) -> bool:
    """Whether padding between two tokens changes nothing. MPT's attention decays with the columns between them."""
    return config.get_text_config().model_type != "mpt"


def position_ids(mask: Tensor) -> Tensor:
    """The positions [B, T] of a padded batch's tokens, counting only what the mask [B, T] shows."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def last_positions(count: int) -> Tensor:
    """The last `count` positions, for `logits_to_keep`.

    The number itself would lead to slices. Slices of a batch are not contiguous, so the head would be multiplied row by
    row: 5 times as slow for 80 rows of 3.
    """
    return torch.arange(-count, 0)
