"""Runs many mixtures on the same few examples: their greedy answers, and how likely the right answers are."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from experts.engine.batches import pad_batch
from experts.engine.context import attention_window, check_context
from experts.engine.decoding import Batch, Writing, end_tokens, greedy, most_likely
from experts.engine.forward import evaluating, forward_cached, mixed
from experts.engine.growing_cache import growing_cache
from experts.engine.likelihoods import log_p_of_tails, tokenize_pairs
from experts.engine.native import NativeEngine
from experts.mixture import Mixture
from experts.outside.chats import Chat

ROW = 512
"""Tokens in a row, as `batch_size` counts rows: of shorter rows a batch holds more."""


class Population:
    """C mixtures, each of which can be asked each of N prompts.

    The results are those of `generate` and `loglikelihood`, for less work. The beginning that all prompts share, chat
    template included, is read once per mixture. The right answer is read behind each prompt. That gives its likelihood,
    and serves as a draft of the greedy answer: only what follows the first difference is written.

    Args:
        right: the right answer to each prompt.
        mixture: C rows, one a mixture.
        batch_size: the size of a batch, in rows of 512 tokens.

    Raises:
        UserError: if a prompt and its answer do not fit the model's context.
    """

    def __init__(
        self,
        engine: NativeEngine,
        prompts: Sequence[str | Chat],
        right: Sequence[str],
        mixture: Mixture,
        *,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self.engine, self.mixture, self.max_new_tokens = engine, mixture, max_new_tokens
        self.prompts, self.right = prompts, right
        config = engine.model.config
        self.writing = Writing(max_new_tokens, end_tokens(engine.generation_config), most_likely)
        heads, self.drafts = tokenize_pairs(engine.tokenizer, prompts, right)
        longest = max(
            len(head) + max(len(draft), max_new_tokens) for head, draft in zip(heads, self.drafts, strict=True)
        )
        check_context(config, longest, 0)
        self.at_once = max(1, batch_size * ROW // longest)  # rows
        columns = zip(*(head[:-1] for head in heads), strict=False)
        shared = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, columns)]
        # The beginning is kept for all mixtures, and may take no more room than a batch.
        self.shared = shared[: batch_size * ROW // len(mixture)]
        self.rests = [head[len(self.shared) :] for head in heads]
        behind = max(len(rest) + len(draft) for rest, draft in zip(self.rests, self.drafts, strict=True))
        # Padding and dropped drafts leave holes, and a narrow window has no room for them.
        narrow = len(self.shared) + behind + max_new_tokens > attention_window(config)
        # A draft is checked against the most likely tokens, and a penalty in the checkpoint would change those.
        self.plainly = narrow or greedy(engine.generation_config) is not most_likely
        self._read: DynamicCache | None = None  # the shared beginning, under each mixture [C]

    @torch.inference_mode()
    def answer(self, asked: Sequence[tuple[int, int]]) -> tuple[list[str], Tensor]:
        """For P mixtures and prompts: the mixture's greedy answer to the prompt, and log p of the right one [P]."""
        if self.plainly:
            return self._answer_plainly(asked)
        texts, likelihoods = [""] * len(asked), torch.zeros(len(asked))
        by_length = sorted(range(len(asked)), key=lambda place: len(self.rests[asked[place][1]]))
        with evaluating(self.engine.model):
            for start in range(0, len(asked), self.at_once):
                places = by_length[start : start + self.at_once]
                rows, examples = zip(*(asked[place] for place in places), strict=True)
                answers, likelihoods[places] = self._answer(self.mixture.rows(rows), rows, examples)
                written = self.engine.tokenizer.batch_decode(answers, skip_special_tokens=True)
                for place, text in zip(places, written, strict=True):
                    texts[place] = text
        return texts, likelihoods

    def _answer_plainly(self, asked: Sequence[tuple[int, int]]) -> tuple[list[str], Tensor]:
        rows, examples = zip(*asked, strict=True)
        prompts, right = ([every[example] for example in examples] for every in (self.prompts, self.right))
        mixture = self.mixture.rows(rows)
        texts = self.engine.generate(prompts, max_new_tokens=self.max_new_tokens, mixture=mixture)
        return texts, self.engine.loglikelihood(prompts, right, mixture=mixture)

    def _behind_shared(self, rows: Sequence[int]) -> DynamicCache:
        """A cache that holds the shared beginning, under some of the mixtures."""
        model = self.engine.model
        if self._read is None:
            self._read = growing_cache(model.config.get_text_config())
            if self.shared:
                once = torch.tensor([self.shared] * len(self.mixture), device=model.device)
                with mixed(model, self.mixture):
                    forward_cached(model, once, torch.ones_like(once), self._read, keep=1)
        cache = deepcopy(self._read)
        if self.shared:
            cache.batch_select_indices(torch.tensor(rows, device=model.device))
        return cache

    def _answer(self, mixture: Mixture, rows: Sequence[int], examples: Sequence[int]) -> tuple[list[list[int]], Tensor]:
        """The tokens of the answers [B], and log p of the drafts [B]."""
        model = self.engine.model
        cache = self._behind_shared(rows)
        drafts = [self.drafts[example] for example in examples]
        heads = [self.rests[example] for example in examples]
        batch = pad_batch(
            model, self.engine.tokenizer, [head + draft for head, draft in zip(heads, drafts, strict=True)]
        )
        ids, here = batch["input_ids"], batch["attention_mask"]  # [B, T]
        mask = torch.cat([here.new_ones(len(here), len(self.shared)), here], 1)
        longest = max(map(len, drafts))
        with mixed(model, mixture):
            # The last logits are those of a row's draft and of what comes after.
            logits = forward_cached(model, ids, mask, cache, keep=longest + 1)
        scores = log_p_of_tails(logits, ids, drafts)

        answers: list[list[int]] = []
        for row, (draft, likeliest) in enumerate(zip(drafts, logits.argmax(2).tolist(), strict=True)):
            likeliest = likeliest[longest - len(draft) :]
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(draft, likeliest, strict=False))))
            answers.append(self._until_end([*draft[:same], likeliest[same]])[: self.max_new_tokens])
            if same < len(draft):
                mask[row, same - len(draft) :] = 0  # the rest of the draft is not part of the answer
        read = torch.cat([ids.new_tensor(self.shared).expand(len(ids), -1), ids], 1)
        open_ = Batch(model, self.writing, mixture)
        open_.take([*range(len(answers))], answers, read, mask, cache)
        while open_.rows:
            for row, answer in open_.write():
                answers[row] = answer
        return answers, scores

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[
            : 1 + next((place for place, token in enumerate(tokens) if token in self.writing.ends), len(tokens))
        ]
