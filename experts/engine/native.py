"""Runs a base on prompts under a mixture of experts: batched greedy answers, streams, likelihoods."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, RLock, Thread, current_thread
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TextIteratorStreamer,
)
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.pytorch_utils import Conv1D

from experts.engine.constrained import Constraint
from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompts, read_texts, tokenize, tokenize_seen
from experts.outside.errors import UserError, check_whole
from experts.outside.pictures import text_tokenizer
from experts.svf import SVFLinear, SVFModel

# While a step decodes fewer rows than this, reading the weights takes longer than computing with them.
ROWS_PER_READ = {"cpu": 8, "cuda": 256}

_evaluated: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # models to train again → open `evaluating` blocks
_switching = RLock()


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Chat],
    *,
    max_new_tokens: int,
    mixture: Mixture | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda answered: None,
    constraint: Constraint | None = None,
) -> list[str]:
    """The greedy answer to each prompt, in the order of the prompts.

    Prompts of like length share a batch, padded on the left. Batches are either of one mixture each, on merged weights,
    or of any mixtures, in factor space: whichever costs less for these prompts. `on_batch` hears how many prompts each
    batch answered.

    Args:
        tokenizer: of a vision-language model its processor; a part {"type": "image", "image": …} is then a picture.
        mixture: one row a prompt, of experts that `model` carries; None leaves the model as it is.
        constraint: the answers that may be given; None allows any.

    Raises:
        UserError: if a prompt and its answer do not fit the model's context, or a number of them is below 1.
    """
    check_whole("max_new_tokens", max_new_tokens)
    check_whole("batch_size", batch_size)
    options = _greedy(tokenizer, max_new_tokens)
    prompts = read_prompts(prompts)
    ids = tokenize(tokenizer, prompts)
    check_context(model.config, max(map(len, ids), default=0), max_new_tokens)
    answers = [""] * len(ids)
    with evaluating(model):
        for rows in plan(model, [len(row) for row in ids], max_new_tokens, mixture, batch_size):
            batch = _batch(model, tokenizer, [prompts[row] for row in rows], [ids[row] for row in rows])
            if constraint is not None:
                options["logits_processor"] = [constraint.processor(batch["input_ids"].shape[1])]
            with nullcontext() if mixture is None else under(model, mixture.rows(rows)):
                output = _without_peft(model).generate(**batch, **options)  # [B, prompt + new]
            texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            on_batch(len(rows))
    return answers


def stream(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    prompt: str | Chat,
    *,
    max_new_tokens: int,
    mixture: Mixture,
) -> Iterator[str]:
    """The greedy answer to one prompt, piece by piece as it is written.

    Raises:
        UserError: if the prompt and its answer do not fit the model's context, or there is to be no answer.
    """
    check_whole("max_new_tokens", max_new_tokens)
    ids = tokenize(tokenizer, [prompt])
    check_context(model.config, len(ids[0]), max_new_tokens)
    batch = _batch(model, tokenizer, [prompt], ids)
    pieces = TextIteratorStreamer(cast(Any, text_tokenizer(tokenizer)), skip_prompt=True, skip_special_tokens=True)
    errors: list[BaseException] = []
    abandoned = Event()  # by the reader

    def write() -> None:
        try:
            with torch.inference_mode(), evaluating(model), under(model, mixture):
                _without_peft(model).generate(
                    **batch,
                    **_greedy(tokenizer, max_new_tokens),
                    streamer=pieces,
                    stopping_criteria=[lambda ids, scores: torch.full((len(ids),), abandoned.is_set())],
                )
        except BaseException as error:
            errors.append(error)
        finally:
            pieces.end()
            atexit.unregister(stop)

    def stop(patience: float | None = None) -> None:
        abandoned.set()
        if writer.is_alive() and writer is not current_thread():
            writer.join(patience)

    writer = Thread(target=write, daemon=True)
    atexit.register(stop)  # a program may end while a stream is open, but not while PyTorch calculates
    writer.start()
    try:
        yield from filter(None, pieces)
    finally:
        # Not for ever: the garbage collector closes a stream in whatever thread it runs, which may be the writer, or
        # hold a lock that the writer waits for.
        stop(patience=1.0)
    if errors:
        raise errors[0]


@torch.inference_mode()
def loglikelihood(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    continuations: Sequence[str],
    *,
    mixture: Mixture | None = None,
    batch_size: int = 32,
) -> Tensor:
    """log p(continuation | prompt) of each pair, in nats, summed over the continuation's tokens: [B], float32.

    Raises:
        UserError: if the lists differ in length, a continuation is empty, or a pair does not fit the context.
    """
    check_whole("batch_size", batch_size)
    heads, tails = pairs(tokenizer, prompts, continuations)
    ids = [head + tail for head, tail in zip(heads, tails, strict=True)]
    check_context(model.config, max(map(len, ids), default=0), 0)
    scores = torch.zeros(len(ids))
    with evaluating(model):
        for rows in plan(model, [len(row) for row in ids], 0, mixture, batch_size):
            batch = pad(model, tokenizer, [ids[row] for row in rows])
            longest = max(len(tails[row]) for row in rows)
            positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            with nullcontext() if mixture is None else under(model, mixture.rows(rows)):
                output = cast(Any, model)(**batch, position_ids=positions, logits_to_keep=last(longest + 1))
            logps = output.logits[:, :-1].float().log_softmax(-1)  # [B, longest, V]
            targets = batch["input_ids"][:, -longest:]
            taken = logps.gather(2, targets[:, :, None])[:, :, 0]  # [B, longest]
            for row, of_row in zip(rows, taken, strict=True):
                scores[row] = of_row[longest - len(tails[row]) :].sum()
    return scores


def pairs(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Sequence[str | Chat], continuations: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each prompt, and of its continuation.

    Raises:
        UserError: if the lists differ in length, a continuation is empty, or the model sees.
    """
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            "a vision-language model only answers here: its likelihoods, and a search that needs them, cannot be had"
        )
    prompts, continuations = read_prompts(prompts), read_texts(continuations, "continuations")
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts need as many continuations, not {len(continuations)}")
    tails = [tokenizer.encode(text, add_special_tokens=False) for text in continuations]
    if not all(tails):
        raise UserError("a continuation must have at least one token")
    return tokenize(tokenizer, prompts), tails


def under(model: PreTrainedModel | PeftModel, mixture: Mixture) -> AbstractContextManager[None]:
    """Within the block, row b of every batch that this thread runs is under row b of the mixture.

    Raises:
        UserError: if the mixture names an expert that the model does not carry.
    """
    if isinstance(model, PeftModel) and isinstance(model.base_model, SVFModel):
        return model.base_model.mixed(mixture.names, mixture.weights, mixture.per_matrix)
    if not mixture.is_base:
        raise UserError("this model carries no experts, and the mixture is not the base")
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def plan(
    model: nn.Module, lengths: Sequence[int], new_tokens: int, mixture: Mixture | None, batch_size: int
) -> list[list[int]]:
    """Deals prompts of `lengths` tokens out to batches: the indices of each, prompts of like length together.

    The cost of a batch is counted in tokens that pass through the base: those of its prompts with the padding, and for
    every new token its rows, or the reading of the weights where that takes longer. Rows of different mixtures in one
    batch multiply it by the factors' share, r(m + n)/mn; batches of one mixture are smaller, and a mixture that has to
    be merged first costs r tokens.

    Raises:
        UserError: if the mixture has not a row for each prompt.
    """
    if mixture is not None and len(mixture) != len(lengths):
        raise UserError(f"{len(lengths)} prompts need a mixture of as many rows, not {len(mixture)}")

    def batches(rows: Sequence[int]) -> list[list[int]]:
        by_length = sorted(rows, key=lambda row: lengths[row])
        return [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]

    def cost(dealt: list[list[int]]) -> float:
        return sum(
            len(rows) * lengths[rows[-1]] + new_tokens * max(len(rows), ROWS_PER_READ.get(device, 256))
            for rows in dealt
        )

    together = batches(range(len(lengths)))
    group_of = mixture.groups() if mixture is not None else [0]
    if len(set(group_of)) == 1 or not isinstance(model, PeftModel):
        return together
    assert mixture is not None
    device = model.device.type
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        groups.setdefault(group, []).append(row)
    apart = [batch for rows in groups.values() for batch in batches(rows)]
    factors, merge = _costs(model, whole=all(mixture.rows([row]).weights.any() for row in range(len(mixture))))
    merges = sum(not mixture.rows(rows[:1]).is_base for rows in groups.values())
    return apart if cost(apart) + merges * merge < factors * cost(together) else together


def _costs(model: PeftModel, whole: bool) -> tuple[float, float]:
    """What a token costs in factor space, and what merging one mixture costs, in tokens through the base."""
    base = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and isinstance(module.weight, Tensor)
    )
    factors, merge = float(base), 0.0
    for layer in model.modules():
        if isinstance(layer, SVFLinear):
            r, m, n = len(layer.svf_s), layer.out_features, layer.in_features
            factors += r * (m + n) - (m * n if whole and layer.whole_in_factors else 0)
            merge += r * m * n
    return factors / base, merge / base


def pad(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, ids: list[list[int]]
) -> Any:
    """`input_ids` and `attention_mask` [B, T] on the model's device, padded on the left."""
    padded = text_tokenizer(tokenizer).pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    return padded.to(model.device)


def _batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Chat],
    ids: list[list[int]],
) -> Any:
    """`pad`, and of a vision-language model the prompts' pictures."""
    if not isinstance(tokenizer, ProcessorMixin):
        return pad(model, tokenizer, ids)
    padding = {"padding": True, "padding_side": "left"}
    batch = tokenize_seen(tokenizer, prompts, return_tensors="pt", processor_kwargs=padding)
    return batch.to(model.device, model.dtype)  # the dtype is that of the pictures


def follow(model: PreTrainedModel | PeftModel, ids: Tensor, mask: Tensor, cache: Cache, keep: int) -> Tensor:
    """The logits [B, keep, V], float32, at the last of some tokens [B, T] that come after those in the cache.

    `mask` covers both, and may have holes; positions count what it shows. The cache is extended.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = cast(Any, model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=last(keep)
    )
    return output.logits.float()


def last(count: int) -> Tensor:
    """The last `count` positions, as `logits_to_keep`.

    The number alone would have them sliced. The slices of a batch are not contiguous, so the head would be multiplied
    row by row: 5 times as slow for 80 rows of 3.
    """
    return torch.arange(-count, 0)


def context_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model reads and writes; None where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_context(config: PreTrainedConfig, longest: int, new_tokens: int) -> None:
    """Raises UserError if a prompt of `longest` tokens and the new ones do not fit the model's context."""
    context = context_of(config)
    if context is not None and longest + new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's context of {context}; "
            "shorten the prompt or ask for fewer new tokens"
        )


def attention_window(config: PreTrainedConfig) -> int:
    """How many tokens the layers that see least attend to; where all see everything, more than there ever are.

    A window counts places, also those that a mask hides: only a text that fits into it may have holes.
    """
    layers = DynamicCache(config=config.get_text_config()).layers
    return min(
        (layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=1 << 30
    )


def _greedy(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, max_new_tokens: int) -> dict[str, Any]:
    """Options of `generate` for one greedy answer a row, whatever a checkpoint asks for of samples and beams.

    Its penalties and ends count.
    """
    one = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": False}
    return {"max_new_tokens": max_new_tokens, "tokenizer": text_tokenizer(tokenizer), **one}


def _without_peft(model: PreTrainedModel | PeftModel) -> Any:
    """What generates. PEFT's own `generate` changes the model while it runs, under the eyes of other threads."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode, until the last thread that is in such a block leaves it."""
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
