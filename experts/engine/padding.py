"""How a base reads its input, found by having it read a prompt alone and the same prompt padded."""

from __future__ import annotations

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Cache, PreTrainedModel

from experts.engine.forward import evaluating, mixed, position_ids
from experts.mixture import Mixture
from experts.outside.errors import UserError

LONG, SHORT = 11, 5
"""The tokens in two prompts; the shorter one is padded to the longer."""

TOLERANCE = 0.1
"""As a share of the logits' standard deviation. Rounding stays below it; wrongly counted positions do not."""


class Reading(NamedTuple):
    """How a base reads. A base that wants another kind of input cannot be tested and is taken to read as most do."""

    hides_padding: bool = True
    """Whether padding on the left, hidden by a mask, changes nothing, not even for the token after.

    It does change something if positions count from the first column, or a recurrent state reads what is masked.
    """
    gives_cache: bool = True
    """Whether it returns what it has read as one of transformers' caches and can continue from that."""


_readings: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()


def reading_of(model: PreTrainedModel | PeftModel) -> Reading:
    """How a base reads; tested once."""
    base = cast(nn.Module, model.get_base_model() if isinstance(model, PeftModel) else model)
    if isinstance(base, FSDPModule):  # the shards of a base must run equally often
        return Reading()
    if base not in _readings:
        try:
            with torch.no_grad(), evaluating(model), mixed(model, Mixture.of({}, 2)):
                _readings[base] = _ask(cast(Any, base))
        except UserError:  # experts are merged into it at the moment
            return Reading()
        except Exception:  # a base may raise anything
            _readings[base] = Reading()
    return _readings[base]


def _ask(base: Any) -> Reading:
    # Attention is told what a mask hides; a recurrent state has that behind it, and the mask would not fit its input.
    told, untold = _ask_once(base, True), _ask_once(base, False)
    return untold if all(untold) else told


def _ask_once(base: Any, told: bool) -> Reading:
    ids = 5 + torch.arange(2 * LONG, device=base.device).view(2, LONG)
    mask = torch.ones_like(ids)
    mask[1, : LONG - SHORT] = 0
    following = torch.tensor([[7], [9]], device=base.device)
    alone = _two_logits(base, ids[1:, -SHORT:], mask[1:, -SHORT:], following[1:], told)
    try:
        together = _two_logits(base, ids, mask, following, told)
    except Exception:  # it reads a prompt alone, but not padded
        return Reading(hides_padding=False, gives_cache=len(alone) > 1)
    pairs = zip(together, alone, strict=False)
    alike = all(float((x[1] - y[0]).abs().max()) <= TOLERANCE * float(y[0].std()) for x, y in pairs)
    return Reading(alike, gives_cache=len(together) > 1)


def _two_logits(base: Any, ids: Tensor, mask: Tensor, following: Tensor, told: bool) -> list[Tensor]:
    """The logits [B, V] after some tokens, and after one more if the base continues from a cache that it returned."""
    output = base(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=True)
    logits = [output.logits[:, -1].float()]
    caches = {key: value for key, value in output.items() if isinstance(value, Cache)}
    longer = torch.cat([mask, torch.ones_like(following)], 1)
    more = {"attention_mask": longer, "position_ids": position_ids(longer)[:, -1:]} if told else {}
    if caches:
        try:
            output = base(input_ids=following, **caches, **more)
        except Exception:  # it wants its input in another form
            return logits
        logits.append(output.logits[:, -1].float())
    return logits
