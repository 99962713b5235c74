"""Runs a base on prompts under a mixture of experts: batched greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.errors import UserError
from experts.mixture import Mixture
from experts.svf import SVFModel

Chat = list[dict[str, str]]


def as_chat(prompt: str | Chat) -> Chat:
    """A string is one user turn of a chat; a list of messages is a chat."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Chat]) -> list[list[int]]:
    """Token ids of each chat, up to where the assistant's answer begins."""
    if not prompts:
        return []
    chats = [as_chat(prompt) for prompt in prompts]
    encoding: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    return encoding["input_ids"]


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    *,
    max_new_tokens: int,
    mixture: Mixture | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """The greedy answer to each prompt, in the order of the prompts.

    Prompts of like length share a batch, padded on the left, whatever their mixtures. `on_batch` hears how many
    prompts each batch answered.

    Args:
        mixture: one row a prompt, of experts that `model` carries; None leaves the model as it is.

    Raises:
        UserError: if a prompt and its answer do not fit the model's context.
    """
    ids = tokenize(tokenizer, prompts)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, ids), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
            "shorten the prompt or ask for fewer new tokens"
        )
    answers = [""] * len(ids)
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokenizer.pad(
                {"input_ids": [ids[row] for row in rows]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            with nullcontext() if mixture is None else under(model, mixture.rows(rows)):
                # [B, prompt + new]
                output = cast(Any, model).generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
            texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            on_batch(len(rows))
    finally:
        model.train(was_training)
    return answers


def under(model: PreTrainedModel | PeftModel, mixture: Mixture) -> AbstractContextManager[None]:
    """Within the block, row b of every batch runs under row b of the mixture.

    Raises:
        UserError: if the mixture names an expert that the model does not carry.
    """
    if isinstance(model, PeftModel):
        if not mixture.weights.any():
            return model.disable_adapter()
        return cast(SVFModel, model.base_model).mixed(mixture.names, mixture.weights)
    if mixture.weights.any():
        raise UserError("this model carries no experts, and the mixture is not the base")
    return nullcontext()
