"""How good an expert is on problems it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from experts.domains.base import Domain, own_reward, scores_of
from experts.engine import NativeEngine
from experts.engine.constrained import constraint_of
from experts.engine.decoding import can_decode, rows_that_fit
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.pictures import text_tokenizer
from experts.training.processes import processes

LOSSES_AT_ONCE = 64


@dataclass(frozen=True)
class Problems:
    """The rows of a domain's split, to be answered greedily."""

    domain: Domain
    rows: Dataset
    max_new_tokens: int


def held_out_scores(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    problems: Problems,
    *,
    batch_size: int = 64,
    mixture: Mixture | None = None,
    on_batch: Callable[[int], None] = lambda answered: None,
) -> list[float]:
    """The domain's score (`scores_of`) of the model's answer to each problem, in order; the work is split by process.

    At most `batch_size` problems are answered at once, and no more than there is room for. A column `image` holds the
    picture that a row's prompt is about; `tokenizer` is then the model's processor. A mixture has a row for each
    problem and names experts that `model` carries; None leaves the model as it is.
    """
    rows, new_tokens = problems.rows, problems.max_new_tokens
    share = _share(len(rows))
    mine = rows.select(share)
    prompts = list(mine["prompt"])
    if "image" in mine.column_names:
        pictures = mine["image"]
        prompts = [prepare_multimodal_messages(p, images=[i]) for p, i in zip(prompts, pictures, strict=True)]
    elif prompts and can_decode(model):  # processes need not run equally many batches then
        longest = max(map(len, tokenize(tokenizer, prompts))) + new_tokens
        batch_size = min(batch_size, rows_that_fit(model, longest))
    answers = NativeEngine(model, tokenizer).generate(
        prompts,
        max_new_tokens=new_tokens,
        batch_size=batch_size,
        mixture=None if mixture is None else mixture.rows(share),
        on_batch=on_batch,
        constraint=constraint_of(problems.domain, tokenizer, new_tokens),
    )
    columns = {name: mine[name] for name in mine.column_names if name != "prompt"}
    if own_reward(problems.domain):  # it takes what TRL passes
        tokens = text_tokenizer(tokenizer)(answers, add_special_tokens=False)["input_ids"] if answers else []
        columns |= {"prompts": mine["prompt"][:], "completion_ids": tokens}
    scores = scores_of(problems.domain, answers, **columns)
    return gather_object(scores)[: len(rows)]


def held_out_losses(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    rows: Dataset,
    target: str,
    *,
    on_batch: Callable[[int], None] = lambda read: None,
) -> list[float]:
    """−log p of the text in the column `target` after each row's prompt, in nats per token; split by process."""
    mine = rows.select(_share(len(rows)))
    engine, losses = NativeEngine(model, tokenizer), []
    for start in range(0, len(mine), LOSSES_AT_ONCE):
        part = mine[start : start + LOSSES_AT_ONCE]
        tokens = [len(ids) for ids in text_tokenizer(tokenizer)(part[target], add_special_tokens=False)["input_ids"]]
        losses += (-engine.loglikelihood(part["prompt"], part[target]) / torch.tensor(tokens)).tolist()
        on_batch(len(tokens))
    return gather_object(losses)[: len(rows)]


def _share(rows: int) -> list[int]:
    """The rows of this process: equally many for each, some twice, because processes that share a base must run it
    equally often."""
    state = processes()
    most = -(-rows // state.num_processes)
    return [row % rows for row in range(most * state.process_index, most * (state.process_index + 1))]
