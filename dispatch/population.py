"""What many mixtures answer to the same few examples: greedy answers, and how likely the right ones are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from experts.engine import (
    Chat,
    attention_window,
    check_context,
    evaluating,
    follow,
    generate,
    loglikelihood,
    pad,
    pairs,
    under,
)
from experts.mixture import Mixture

ROW = 512
"""Tokens of a row, as `batch_size` counts them: shorter rows are the more."""


@torch.inference_mode()
def answer_all(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    right: Sequence[str],
    mixture: Mixture,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[list[list[str]], Tensor]:
    """The greedy answer of each of C mixtures to each of N prompts, and log p of each right answer [C, N].

    They are what `generate` and `loglikelihood` give, for less work. What all prompts begin with, the words of the chat
    template among it, is read once a mixture. The right answer is read behind each prompt. That gives its likelihood,
    and it is a draft of the greedy answer, of which only what comes after the first difference is written.

    Args:
        batch_size: rows of 512 tokens that a batch may be as large as.

    Raises:
        UserError: if a prompt and its answer do not fit the model's context.
    """
    heads, drafts = pairs(tokenizer, prompts, right)
    longest = max(len(head) + max(len(draft), max_new_tokens) for head, draft in zip(heads, drafts, strict=True))
    check_context(model.config, longest, 0)
    columns = zip(*(head[:-1] for head in heads), strict=False)
    shared = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, columns)]
    rests = [head[len(shared) :] for head in heads]
    behind = max(len(rest) + len(draft) for rest, draft in zip(rests, drafts, strict=True))
    if len(shared) + behind + max_new_tokens > attention_window(model.config):
        return _one_by_one(model, tokenizer, prompts, right, mixture, max_new_tokens)
    texts: list[list[str]] = []
    likelihoods = []
    at_once = max(1, batch_size * ROW // (longest * len(prompts)))  # mixtures
    with evaluating(model):
        for start in range(0, len(mixture), at_once):
            some = mixture.rows(list(range(len(mixture)))[start : start + at_once])
            answers, scores = _answer(model, tokenizer, shared, rests, drafts, some, max_new_tokens)
            written = tokenizer.batch_decode(answers, skip_special_tokens=True)
            texts += [written[row : row + len(prompts)] for row in range(0, len(written), len(prompts))]
            likelihoods.append(scores)
    return texts, torch.cat(likelihoods)


def _one_by_one(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    right: Sequence[str],
    mixture: Mixture,
    max_new_tokens: int,
) -> tuple[list[list[str]], Tensor]:
    """What `answer_all` returns, where an attention window is too narrow for padding and dropped drafts."""
    alone = [mixture.rows([row]).expand(len(prompts)) for row in range(len(mixture))]
    texts = [generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, mixture=own) for own in alone]
    return texts, torch.stack([loglikelihood(model, tokenizer, prompts, right, mixture=own) for own in alone])


def _answer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    shared: Sequence[int],
    rests: list[list[int]],
    drafts: list[list[int]],
    mixture: Mixture,
    max_new_tokens: int,
) -> tuple[list[list[int]], Tensor]:
    """The tokens of the answers [C·N], each mixture's side by side, and log p of the drafts [C, N]."""
    count, examples = len(mixture), len(rests)
    cache = DynamicCache(config=model.config.get_text_config())
    with under(model, mixture):
        if shared:
            once = torch.tensor([list(shared)] * count, device=model.device)
            follow(model, once, torch.ones_like(once), cache, keep=1)
            cache.batch_repeat_interleave(examples)
        batch = pad(model, tokenizer, [rest + draft for rest, draft in zip(rests, drafts, strict=True)] * count)
        ids, here = batch["input_ids"], batch["attention_mask"]  # [C·N, T]
        mask = torch.cat([here.new_ones(len(here), len(shared)), here], 1)
        longest = max(map(len, drafts))
        logits = follow(model, ids, mask, cache, keep=longest + 1)  # those of row's draft, and what comes after, last
    taken = logits[:, :-1].log_softmax(2).gather(2, ids[:, -longest:, None])[:, :, 0].cpu()  # [C·N, longest]
    lengths = [len(draft) for draft in drafts] * count
    scores = torch.stack([row[longest - length :].sum() for row, length in zip(taken, lengths, strict=True)])

    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    answers: list[list[int]] = []
    for row, (draft, greedy) in enumerate(zip(drafts * count, logits.argmax(2).tolist(), strict=True)):
        greedy = greedy[longest - len(draft) :]
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(draft, greedy, strict=False))))
        answers.append(_until_end([*draft[:same], greedy[same]], ends)[:max_new_tokens])
        if same < len(draft):
            mask[row, same - len(draft) :] = 0  # the rest of the draft is not part of the answer
    by_row = mixture.rows([row // examples for row in range(len(answers))])
    _write(model, cache, mask, answers, by_row, ends, max_new_tokens)
    return answers, scores.view(count, examples)


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[: 1 + next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _write(
    model: PeftModel,
    cache: DynamicCache,
    mask: Tensor,
    answers: list[list[int]],
    mixture: Mixture,
    ends: Sequence[int],
    most: int,
) -> None:
    """Goes on with the answers that have not ended, whose last tokens have been chosen but not read."""

    def is_open(row: int) -> bool:
        return len(answers[row]) < most and answers[row][-1] not in ends

    rows = list(range(len(answers)))
    while still := [place for place, row in enumerate(rows) if is_open(row)]:
        # Copying the cache costs about a step: not worth it for a few rows.
        if len(still) <= 0.75 * len(rows):
            cache.batch_select_indices(torch.tensor(still, device=mask.device))
            mask, rows = mask[still], [rows[place] for place in still]
        with under(model, mixture.rows(rows)):
            while True:
                ids = torch.tensor([[answers[row][-1]] for row in rows], device=mask.device)
                mask = torch.cat([mask, torch.ones_like(ids)], 1)
                following = follow(model, ids, mask, cache, keep=1)[:, -1].argmax(1).tolist()
                for row, token in zip(rows, following, strict=True):
                    if is_open(row):
                        answers[row].append(token)
                if sum(map(is_open, rows)) <= 0.75 * len(rows):
                    break
