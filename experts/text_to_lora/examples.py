"""Instances of tasks as token batches, and the order in which a training run meets them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from experts.engine import context_of, last_positions, position_ids
from experts.outside.chats import Chat, tokenize
from experts.outside.errors import UserError, check_numbers
from experts.text_to_lora.tasks import Instance, Task


@dataclass(frozen=True)
class PromptStyle:
    """What the base reads from an instance, and how much of it."""

    with_definition: bool = True
    """Put the task's definition before the input, as the paper does; without it, only the adapter knows the task."""
    max_prompt_tokens: int = 512
    """The most tokens in a prompt; longer prompts lose their beginning."""
    max_answer_tokens: int = 512
    """The most tokens in an answer; longer answers lose their end."""

    def __post_init__(self) -> None:
        check_numbers(self, least=[("max_prompt_tokens", 1), ("max_answer_tokens", 1)])

    def chat(self, task: Task, instance: Instance) -> Chat:
        text = f"{task.definition}\n\n{instance.input}" if self.with_definition else instance.input
        return [{"role": "user", "content": text}]


@dataclass(frozen=True)
class Example:
    """Token ids of one prompt and of the answer with its end token."""

    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        """The tokens of both."""
        return len(self.prompt) + len(self.answer)


def make_example(tokenizer: PreTrainedTokenizerBase, style: PromptStyle, chat: Chat, answer: str) -> Example:
    (prompt,) = tokenize(tokenizer, [chat])
    ids = tokenizer.encode(answer, add_special_tokens=False)[: style.max_answer_tokens - 1]
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return Example(prompt[-style.max_prompt_tokens :], [*ids, end])


def check_examples(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, style: PromptStyle, tasks: Iterable[Task]
) -> None:
    """Raises UserError, naming the instance, if one does not fit the model's context with each of its answers."""
    context = context_of(config)
    if context is None or style.max_prompt_tokens + style.max_answer_tokens <= context:
        return
    for task in tasks:
        for instance in task.instances:
            for answer in instance.outputs:
                example = make_example(tokenizer, style, style.chat(task, instance), answer)
                if example.length > context:
                    raise UserError(
                        f"{task.name}: the instance {instance.id} has {example.length} tokens, more than the model's "
                        f"context of {context}; lower prompt.max_prompt_tokens or prompt.max_answer_tokens"
                    )


def pad_examples(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `position_ids` and `labels`, [B, T], padded on the left; −100 is no label."""
    length = max(example.length for example in examples)
    ids, mask, labels = [], [], []
    for example in examples:
        own = example.prompt + example.answer
        free = length - len(own)
        ids.append([pad] * free + own)
        mask.append([0] * free + [1] * len(own))
        labels.append([-100] * (length - len(example.answer)) + example.answer)
    attention_mask = torch.tensor(mask)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": attention_mask,
        "position_ids": position_ids(attention_mask),
        "labels": torch.tensor(labels),
    }


def token_losses(
    base: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float = 0.0, neftune_alpha: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of each row's answer tokens, in nats, and the number of these tokens: both [B].

    Args:
        label_smoothing: the share of the target that is spread over the vocabulary.
        neftune_alpha: noise on the token embeddings, uniform in ±α/√(T·d) (arXiv 2310.05914).
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    if neftune_alpha:
        embedded = base.get_input_embeddings()(inputs.pop("input_ids"))  # type: ignore[operator]
        lengths = batch["attention_mask"].sum(1)[:, None, None]  # [B, 1, 1]
        noise = torch.zeros_like(embedded).uniform_(-1, 1) * neftune_alpha / (lengths * embedded.shape[-1]).sqrt()
        inputs["inputs_embeds"] = embedded + noise.to(embedded.dtype)
    longest = int((batch["labels"] != -100).sum(1).max())
    logits = base(**inputs, logits_to_keep=last_positions(longest + 1)[:-1], use_cache=False).logits  # [B, longest, V]
    labels = batch["labels"][:, -longest:]
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100, label_smoothing=label_smoothing
    )
    tokens = (labels != -100).sum(1)
    return losses.sum(1) / tokens, tokens


class Rounds(Dataset[Any]):
    """`size` items in rounds over the tasks: every round has each task once, in its own order.

    Item i depends only on the seed and i, so a resumed run, and each of several processes, gets what a single
    uninterrupted one would.
    """

    def __init__(self, tasks: int, size: int, seed: int, make: Callable[[int, random.Random], Any]) -> None:
        self.tasks, self.size, self.seed, self.make = tasks, size, seed, make

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        """`make(task, rng)` for the item's task, with the random numbers drawn within it."""
        round_, place = divmod(index, self.tasks)
        order = list(range(self.tasks))
        random.Random(f"{self.seed}:{round_}").shuffle(order)
        return self.make(order[place], random.Random(f"{self.seed}:{round_}:{place}"))
