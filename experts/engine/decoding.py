"""Answers many prompts side by side: a row that ends leaves the batch, and one that waits takes its place.

transformers' `generate` keeps a row until the last row of its batch has ended, and copies all keys and values for every
token. That costs time when answers are long or end at different times (`benchmarks/decoding.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, RepetitionPenaltyLogitsProcessor

from experts.engine.constrained import Constraint
from experts.engine.forward import allows_holes, forward_cached, mixed
from experts.engine.growing_cache import GrowingLayer, growing_cache, join, select
from experts.engine.padding import reading_of
from experts.engine.sampling import draw
from experts.mixture import Mixture

Choose = Callable[[Tensor, Sequence[Sequence[int]], Tensor, Sequence[int]], Tensor]
"""Takes logits [B, V] in float32, the B answers so far, all tokens so far [B, T], and the number of each row's prompt;
returns the next token of each row [B]."""

LEAVE = 1 / 8
"""Ended rows leave once they make up this share of a batch: taking them out copies the others."""

ROOM = 2 << 30
"""Bytes of keys and values that a batch may have where the free memory is unknown."""

# Generation settings of a checkpoint that greedy decoding ignores, or that each call gives anew.
UNASKED = {"transformers_version", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"}
KNOWN = UNASKED | {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "num_beams"}
KNOWN |= {"repetition_penalty", "return_dict_in_generate", "use_cache", "_from_model_config", "early_stopping"}


def can_decode(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a batch can gain and lose rows: every layer keeps the keys and values of all it has read, nothing more.

    Rows of different lengths are padded, so padding must change nothing.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "_is_stateful", False) or isinstance(base, FSDPModule):  # shards of a base must run equally often
        return False
    layers = growing_cache(base.config.get_text_config()).layers
    return bool(layers) and all(type(layer) is GrowingLayer for layer in layers) and all(reading_of(model))


def most_likely(logits: Tensor, answers: Sequence[Sequence[int]], ids: Tensor, rows: Sequence[int]) -> Tensor:
    return logits.argmax(1)


def rows_that_fit(model: PreTrainedModel | PeftModel, tokens: int) -> int:
    """How many rows of `tokens` tokens have room for their keys and values in the memory that is left."""
    return max(1, tokens_that_fit(model) // tokens)


def tokens_that_fit(model: PreTrainedModel | PeftModel) -> int:
    """How many tokens have room for their keys and values in the memory that is left."""
    config = cast(Any, model.config.get_text_config())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    room = ROOM
    if model.device.type == "cuda":  # memory that PyTorch has reserved but does not use is free too
        own = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        room = (torch.cuda.mem_get_info(model.device)[0] + own) // 2
    return room // (2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def greedy(config: GenerationConfig) -> Choose | None:
    """Chooses the most likely token, `penalized`."""
    return penalized(config, most_likely)


def penalized(config: GenerationConfig, choose: Choose) -> Choose | None:
    """`choose` after the checkpoint's repetition penalty; None if the checkpoint asks for anything beyond that."""
    if {name for name, value in config.to_diff_dict().items() if value} - KNOWN:
        return None
    if config.repetition_penalty in (None, 1.0):
        return choose
    penalty = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    return lambda logits, answers, ids, rows: choose(penalty(cast(Any, ids), cast(Any, logits)), answers, ids, rows)


def sampled(temperature: float) -> Choose:
    """Draws a token with the probability that the model gives it at a temperature."""

    def chosen(logits: Tensor, answers: Sequence[Sequence[int]], ids: Tensor, rows: Sequence[int]) -> Tensor:
        return draw((logits / temperature).softmax(1), torch.rand(len(logits), device=logits.device))

    return chosen


def constrained(choose: Choose, constraint: Constraint) -> Choose:
    """`choose` among the tokens that can still lead to one of a few answers."""

    def chosen(logits: Tensor, answers: Sequence[Sequence[int]], ids: Tensor, rows: Sequence[int]) -> Tensor:
        return choose(logits + constraint.masks(answers, logits.shape[1]).to(logits), answers, ids, rows)

    return chosen


def end_tokens(config: GenerationConfig) -> list[int]:
    """The tokens that end an answer."""
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    max_new_tokens: int
    ends: Collection[int]
    """The tokens that end an answer; they are part of it."""
    choose: Choose
    stopped: Callable[[Sequence[int]], bool] = lambda answer: False
    """Whether an answer has ended for another reason."""

    def is_open(self, answer: Sequence[int]) -> bool:
        return len(answer) < self.max_new_tokens and answer[-1] not in self.ends and not self.stopped(answer)


class Batch:
    """Rows that are being written: a cache of what they have read, and answers whose last token is still to be read."""

    def __init__(self, model: PreTrainedModel | PeftModel, writing: Writing, mixture: Mixture | None) -> None:
        self.model, self.writing = model, writing
        self.mixture = mixture  # of all rows to come
        self.rows: list[int] = []
        self.answers: list[list[int]] = []  # in the order of `rows`
        self.ids = self.mask = torch.empty(0)  # [B, T], read so far; a hole holds some token of the row
        self.cache = DynamicCache()

    def under(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext() if self.mixture is None else mixed(self.model, self.mixture.rows(rows))

    def take(
        self, rows: Sequence[int], answers: Sequence[list[int]], ids: Tensor, mask: Tensor, cache: DynamicCache
    ) -> None:
        """Adds rows that have read `ids` [b, t], where `mask` may have holes, and have begun their answers."""
        filled = ids.where(mask.bool(), ids[:, -1:])
        if self.rows:
            width = max(mask.shape[1], self.mask.shape[1])
            join(self.cache, cache)
            self.ids = torch.cat([_widened(self.ids, width, self.ids[:, :1]), _widened(filled, width, filled[:, :1])])
            self.mask = torch.cat([_widened(self.mask, width, 0), _widened(mask, width, 0)])
        else:
            self.ids, self.mask, self.cache = filled, mask, cache
        self.rows += rows
        self.answers += answers

    def write(self) -> Iterator[tuple[int, list[int]]]:
        """Writes until some of the answers have ended, and lets them go. Yields each row and its answer."""
        still = [place for place, answer in enumerate(self.answers) if self.writing.is_open(answer)]
        with self.under(self.rows):
            while still and len(self.rows) - len(still) < max(1, LEAVE * len(self.rows)):
                following = self.writing.choose(self.read(), self.answers, self.ids, self.rows).tolist()
                for place in still:
                    self.answers[place].append(following[place])
                still = [place for place in still if self.writing.is_open(self.answers[place])]
        ended = sorted(set(range(len(self.rows))) - set(still))
        yield from [(self.rows[place], self.answers[place]) for place in ended]
        self.keep(still)

    def read(self) -> Tensor:
        """Reads the last token of every answer; returns the logits [B, V] of the next."""
        last = torch.tensor([answer[-1:] for answer in self.answers], device=self.mask.device)
        self.ids, self.mask = torch.cat([self.ids, last], 1), torch.cat([self.mask, torch.ones_like(last)], 1)
        return forward_cached(self.model, last, self.mask, self.cache, keep=1)[:, -1]

    def keep(self, places: Sequence[int]) -> None:
        """Drops all other rows."""
        kept = torch.tensor(places, dtype=torch.long, device=self.mask.device)
        self.mask = self.mask[kept]
        first = 0
        if places and all(isinstance(layer, GrowingLayer) for layer in self.cache.layers):
            first = int(self.mask.any(0).int().argmax())  # there are only holes before it
        self.ids, self.mask = self.ids[kept, first:], self.mask[:, first:]
        self.rows, self.answers = [self.rows[place] for place in places], [self.answers[place] for place in places]
        if places:
            select(self.cache, kept, first)


def _widened(columns: Tensor, width: int, fill: Tensor | int) -> Tensor:
    """Columns [B, T] padded in front with `fill`: [B, width]."""
    wide = columns.new_empty(len(columns), width)
    wide[:, : width - columns.shape[1]], wide[:, width - columns.shape[1] :] = cast(Any, fill), columns
    return wide


def decode(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    writing: Writing,
    *,
    rows_at_once: int,
    mixture: Mixture | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Answers prompts, up to `rows_at_once` at a time; yields the index of each prompt and the tokens of its answer.

    Equal prompts under one mixture are read only once, and so is a beginning that all prompts share.

    Args:
        prompts: token ids, in the order in which they are taken.
        mixture: one row per prompt; None leaves the model as it is.
    """
    batch = Batch(model, writing, mixture)
    groups = [0] * len(prompts) if mixture is None else mixture.groups()
    reader = _Reader(batch, prompts, groups, rows_at_once)
    waiting = deque(range(len(prompts)))
    while waiting or batch.rows:
        if waiting:
            rows = [waiting.popleft() for _ in range(min(rows_at_once - len(batch.rows), len(waiting)))]
            batch.take(rows, *reader.read(rows))
        yield from batch.write()


class _Reader:
    """Reads prompts, once for each mixture that they are under, behind the beginning that all of them share."""

    def __init__(
        self, batch: Batch, prompts: Sequence[Sequence[int]], groups: Sequence[int], rows_at_once: int
    ) -> None:
        self.batch, self.prompts, self.groups = batch, prompts, groups
        first_of: dict[int, int] = {}  # the first row under each of G mixtures
        for row, group in enumerate(groups):
            first_of.setdefault(group, row)
        self.place_of = {group: place for place, group in enumerate(first_of)}
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, columns)]
        # One prompt shares nothing; the beginning, kept for every mixture, must not be larger than a batch; and prompts
        # of different lengths leave holes between the beginning and the rest.
        many = len(prompts) > 1 and len(first_of) <= rows_at_once
        self.shared = shared if many and allows_holes(cast(Any, batch.model.config)) else []
        self.cache = self._empty()
        if self.shared:
            ids = torch.tensor([self.shared] * len(first_of), device=batch.model.device)  # [G, P]
            with batch.under([*first_of.values()]):
                forward_cached(batch.model, ids, torch.ones_like(ids), self.cache, keep=1)

    def _empty(self) -> DynamicCache:
        return growing_cache(self.batch.model.config.get_text_config())

    def read(self, rows: Sequence[int]) -> tuple[list[list[int]], Tensor, Tensor, DynamicCache]:
        """What `Batch.take` takes: the first token of each answer, the tokens read [B, T], their mask and the cache."""
        model, length = self.batch.model, len(self.shared)
        keys = [(tuple(self.prompts[row]), self.groups[row]) for row in rows]
        first_of: dict[Any, int] = {}
        for key, row in zip(keys, rows, strict=True):
            first_of.setdefault(key, row)
        place_of = {key: place for place, key in enumerate(first_of)}
        once = [*first_of.values()]  # u rows of different prompts
        rests = [self.prompts[row][length:] for row in once]
        longest = max(map(len, rests))
        padded = [[rest[-1]] * (longest - len(rest)) + list(rest) for rest in rests]
        shows = [[1] * length + [0] * (longest - len(rest)) + [1] * len(rest) for rest in rests]
        ids = torch.tensor([[*self.shared, *row] for row in padded], device=model.device)  # [u, P + T]
        mask = torch.tensor(shows, device=model.device)
        cache = deepcopy(self.cache)
        if length:
            cache.batch_select_indices(torch.tensor([self.place_of[self.groups[row]] for row in once]).to(ids))
        with self.batch.under(once):
            logits = forward_cached(model, ids[:, length:], mask, cache, keep=1)[:, -1]  # [u, V]
        of_row = torch.tensor([place_of[key] for key in keys], device=model.device)  # [B]
        if len(once) < len(rows):
            cache.batch_select_indices(of_row)
        ids, mask = ids[of_row], mask[of_row]
        following = self.batch.writing.choose(logits[of_row], [[] for _ in rows], ids, rows)
        return following[:, None].tolist(), ids, mask, cache
