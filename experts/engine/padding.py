"""How a base reads what it is given, found by giving it something: a prompt alone, and the same prompt padded."""

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
"""Tokens of two prompts, the shorter one padded to the longer."""

TOLERANCE = 0.1
"""Of the logits' standard deviation. Rounding stays below it, positions that are counted otherwise do not."""


class Reading(NamedTuple):
    """How a base reads; where it wants another input and cannot be asked, as most do."""

    hides_padding: bool = True
    """Whether padding on the left, and a mask that hides it, change nothing, nor for the token after.

    They do where positions are counted from the first column, or a recurrent state reads what is masked.
    """
    gives_cache: bool = True
    """Whether it returns what it has read as one of transformers' caches, and goes on from that."""


_readings: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()


def reading_of(model: PreTrainedModel | PeftModel) -> Reading:
    """How a base reads, asked once."""
    base = cast(nn.Module, model.get_base_model() if isinstance(model, PeftModel) else model)
    if isinstance(base, FSDPModule):  # the shares of a base must run equally often
        return Reading()
    if base not in _readings:
        try:
            with torch.no_grad(), evaluating(model), mixed(model, Mixture.of({}, 2)):
                _readings[base] = _ask(cast(Any, base))
        except UserError:  # experts are merged into it for now
            return Reading()
        except Exception:  # in whatever way it says so
            _readings[base] = Reading()
    return _readings[base]


def _ask(base: Any) -> Reading:
    # Attention is told what a mask hides; a recurrent state is past it, and a mask would be another's.
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
    except Exception:  # what it reads alone it does not read padded
        return Reading(hides_padding=False, gives_cache=len(alone) > 1)
    pairs = zip(together, alone, strict=False)
    alike = all(float((x[1] - y[0]).abs().max()) <= TOLERANCE * float(y[0].std()) for x, y in pairs)
    return Reading(alike, gives_cache=len(together) > 1)


def _two_logits(base: Any, ids: Tensor, mask: Tensor, following: Tensor, told: bool) -> list[Tensor]:
    """The logits [B, V] after some tokens, and after one more, where the base goes on from a cache that it gave."""
    output = base(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=True)
    logits = [output.logits[:, -1].float()]
    caches = {key: value for key, value in output.items() if isinstance(value, Cache)}
    longer = torch.cat([mask, torch.ones_like(following)], 1)
    more = {"attention_mask": longer, "position_ids": position_ids(longer)[:, -1:]} if told else {}
    if caches:
        try:
            output = base(input_ids=following, **caches, **more)
        except Exception:  # it wants to be told otherwise
            return logits
        logits.append(output.logits[:, -1].float())
    return logits
