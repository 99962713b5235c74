"""The completions of one prompt share its computation: it is read once, in sampling and in training.

With S samples of C tokens for a prompt of P, a step passes P + S·C tokens through the base instead of S·(P + C). A
beginning that all prompts share, such as a system message or solved examples, is read once for all of them. The
gradient is the same: the keys' and values' gradient is the sum over all that attend to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import pad

from experts.engine import allows_holes, last_positions, position_ids
from experts.engine.constrained import Constraint
from experts.engine.decoding import (
    Writing,
    can_decode,
    constrained,
    decode,
    end_tokens,
    most_likely,
    rows_that_fit,
    sampled,
)
from experts.engine.forward import CACHE
from experts.training.passes import alike, apart_on


def read(
    model: Any, ids: Tensor, mask: Tensor, cache: DynamicCache | None = None
) -> tuple[DynamicCache | None, Tensor]:
    """The keys and values of prompts [P, L], padded on the left, and the logits [P, 1, V] of what comes next.

    The cache is None if it cannot be shared because it holds recurrent states.

    Args:
        cache: what comes before `ids`; the mask covers it as well.
    """
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask)[:, -ids.shape[1] :],
        use_cache=True,
        logits_to_keep=last_positions(1),
        **{CACHE: cache},
    )
    cache = output.get(CACHE)
    shared = isinstance(cache, DynamicCache) and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    return (cache if shared and cache.get_seq_length() == mask.shape[1] else None), output.logits


def read_behind_prefix(model: Any, ids: Tensor, mask: Tensor) -> tuple[DynamicCache | None, Tensor, Tensor]:
    """As `read`, but reads a beginning that all prompts share once; also gives the mask [P, L] of the cache's columns.

    The columns are the prefix, followed by the rest of each prompt, padded on its left.
    """
    P, L = ids.shape
    lengths = mask.sum(1)
    places = torch.arange(int(lengths.min()) - 1, device=ids.device)  # the rest is never empty
    beginnings = ids.gather(1, (L - lengths)[:, None] + places)
    K = int((beginnings == beginnings[:1]).all(0).long().cumprod(0).sum())
    if P > 1 and K and shares_beginnings(model):
        cache, _ = read(model, beginnings[:1, :K], mask.new_ones(1, K))
        # Layers that look back a number of columns would count the padding between prefix and rest.
        if cache is not None and all(type(layer) is DynamicLayer for layer in cache.layers):
            cache.batch_select_indices(torch.zeros(P, dtype=torch.long, device=ids.device))
            rest = torch.arange(L - K, device=ids.device) >= (L - lengths)[:, None]
            mask = torch.cat([mask.new_ones(P, K), rest.to(mask)], 1)
            return *read(model, ids[:, K:], mask, cache), mask
    return *read(model, ids, mask), mask


def shares_beginnings(model: Any) -> bool:
    """Whether a beginning that all prompts share can be read once.

    It cannot if attention counts columns, or if the base is sharded: FSDP gathers a layer's weights once a gradient
    reaches its output, and none reaches the output of a prefix's last layer.
    """
    return not is_shared_out(model) and allows_holes(getattr(model, "module", model).config)  # perhaps DDP's


def is_shared_out(model: Any) -> bool:
    """Whether each process holds a shard of the base, so that all must run it equally often."""
    return isinstance(model, nn.Module) and any(isinstance(each, FSDPModule) for each in model.modules())


def completion_logits(
    model: Any, ids: Tensor, mask: Tensor, length: int, *, share: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields some of B rows [b], and the logits [b, c, V] from which their first c completion tokens were drawn.

    Rows whose completions are about equally long pass together; c is the length of their longest completion.

    Args:
        ids, mask: [B, L], prompts padded on the left and, in the last `length` columns, completions padded on the
            right.
        share: read the prompt of neighbouring rows, and a beginning that all share, only once; gradient checkpointing
            does not allow it.
    """
    prompts, of_row = torch.unique_consecutive(ids[:, :-length], dim=0, return_inverse=True)  # [P, L], [B]
    lengths = mask[:, -length:].sum(1).tolist()
    groups = [[*range(len(ids))]] if is_shared_out(model) else alike(lengths, apart_on(ids.device))
    cache = None
    if share and len(prompts) < len(ids):
        firsts = torch.searchsorted(of_row, torch.arange(len(prompts), device=ids.device))  # [P]
        cache, first_logits, prompt_mask = read_behind_prefix(model, prompts, mask[firsts, :-length])
    for group in groups:
        rows = torch.tensor(group, device=ids.device)
        longest = max(1, *(lengths[row] for row in group))
        upto = ids.shape[1] - length + longest
        own_ids, own_mask = ids[rows, :upto], mask[rows, :upto]
        if cache is None:
            shown = slice(int(own_mask.any(0).int().argmax()), None)
            inputs = {"input_ids": own_ids[:, shown], "attention_mask": own_mask[:, shown]}
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
            yield rows, model(**inputs, logits_to_keep=last_positions(longest + 1)[:-1], use_cache=False).logits
            continue
        logits = [first_logits[of_row[rows]]]
        if longest > 1:
            behind = copy(cache)
            behind.layers = [copy(layer) for layer in cache.layers]
            behind.batch_select_indices(of_row[rows])
            own_mask = torch.cat([prompt_mask[of_row[rows]], own_mask[:, -longest:-1]], 1)
            inputs = {"input_ids": own_ids[:, -longest:-1], "attention_mask": own_mask}
            inputs["position_ids"] = position_ids(own_mask)[:, 1 - longest :]
            logits.append(model(**inputs, **{CACHE: behind}, use_cache=True).logits)
        yield rows, torch.cat(logits, 1)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    samples: int,
    config: GenerationConfig,
    constraint: Constraint | None = None,
    *,
    plainly: bool = True,
) -> list[list[int]]:
    """`samples` completions of each prompt, side by side, perhaps with further tokens after the end token.

    Args:
        config: its `max_new_tokens`, `do_sample`, `temperature` and `eos_token_id` count.
        plainly: whether nothing else in it counts; otherwise transformers' `generate` draws.
    """
    if plainly and can_decode(model):
        longest = max(map(len, prompts)) + config.max_new_tokens
        choose = sampled(config.temperature or 1.0) if config.do_sample else most_likely
        if constraint is not None:
            choose = constrained(choose, constraint)
        writing = Writing(config.max_new_tokens, end_tokens(config), choose)
        rows = [prompt for prompt in prompts for _ in range(samples)]
        written = decode(model, rows, writing, rows_at_once=rows_that_fit(model, longest))
        return [completion for _, completion in sorted(written)]
    once = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    ids = pad(once, padding_value=config.pad_token_id, padding_side="left")  # [P, L]
    mask = pad([torch.ones_like(prompt) for prompt in once], padding_value=0, padding_side="left")
    cache, _ = read(model, ids[:, :-1], mask[:, :-1])
    if cache is not None:
        cache.batch_repeat_interleave(samples)
    output = model.generate(
        input_ids=ids.repeat_interleave(samples, 0),
        attention_mask=mask.repeat_interleave(samples, 0),
        generation_config=config,
        logits_processor=[] if constraint is None else [constraint.processor(ids.shape[1])],
        **{CACHE: cache},
    )
    return output[:, ids.shape[1] :].tolist()
