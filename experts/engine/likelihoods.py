"""How likely one text is after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from experts.outside.chats import Chat, read_prompts, read_texts, tokenize
from experts.outside.errors import UserError


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Sequence[str | Chat], continuations: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of each prompt and of its continuation.

    Raises:
        UserError: if the lists differ in length, a continuation is empty, or the model is a vision-language model.
    """
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            "a vision-language model can only answer here: likelihoods, and a search that needs them, are not supported"
        )
    prompts, continuations = read_prompts(prompts), read_texts(continuations, "continuations")
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts need as many continuations, not {len(continuations)}")
    tails = [tokenizer.encode(text, add_special_tokens=False) for text in continuations]
    if not all(tails):
        raise UserError("a continuation must have at least one token")
    return tokenize(tokenizer, prompts), tails


def log_p_of_tails(logits: Tensor, ids: Tensor, tails: Sequence[Sequence[int]]) -> Tensor:
    """log p of the tail that each row ends in, in nats: [B], float32, on the CPU.

    Args:
        logits: of the last L + 1 positions, [B, L + 1, V], where L is the length of the longest tail.
        ids: the rows' tokens [B, T], padded on the left.
    """
    longest = logits.shape[1] - 1
    logps = logits[:, :-1].float().log_softmax(2)  # [B, L, V]: a token's come from the position before it
    taken = logps.gather(2, ids[:, -longest:, None])[:, :, 0].cpu()  # [B, L]
    return torch.stack([row[longest - len(tail) :].sum() for row, tail in zip(taken, tails, strict=True)])
