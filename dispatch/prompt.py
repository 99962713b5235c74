"""The base itself names the domain of a prompt (arXiv 2501.06252, section 3.2, "prompt engineering")."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dispatch.base import decide, question
from experts.engine import Chat, evaluating, generate, pad, under
from experts.errors import UserError
from experts.files import write_json
from experts.mixture import Mixture

TEMPLATE = "Categories:\n{categories}\n\n{question}\n\nCategory?"
MARK = "\x00"  # stands for the question while the template is cut in two
LONGEST = 384  # tokens of a question that are read: what it is about shows early


@dataclass(frozen=True)
class Calibration:
    """Turns log-probabilities of names and descriptions into those of experts: softmax(scores · weight + bias)."""

    weight: Tensor  # [2K, K]
    bias: Tensor  # [K]

    @classmethod
    def centred(cls, scores: Tensor) -> Calibration:
        """Trusts the descriptions alone, and takes off what a description scores on average over `scores` [B, 2K]."""
        names = scores.shape[1] // 2
        weight = torch.cat([torch.zeros(names, names), torch.eye(names)])
        return cls(weight, -(scores @ weight).mean(0))

    @classmethod
    def of_names(cls, names: int) -> Calibration:
        """Trusts the names alone, as they are: what a classification expert has been trained on."""
        return cls(torch.cat([torch.eye(names), torch.zeros(names, names)]), torch.zeros(names))

    @classmethod
    def fitted(cls, scores: Tensor, labels: Tensor, decay: float = 1e-2) -> Calibration:
        """Multinomial logistic regression of `labels` [B] on standardised `scores` [B, 2K]."""
        mean, std = scores.mean(0), scores.std(0).clamp(min=1e-3)
        standard = (scores - mean) / std
        weight = torch.zeros(scores.shape[1], scores.shape[1] // 2, requires_grad=True)
        bias = torch.zeros(scores.shape[1] // 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(standard @ weight + bias, labels) + decay * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)  # type: ignore[arg-type]
        weight = (weight / std[:, None]).detach()
        return cls(weight, bias.detach() - mean @ weight)

    def write(self, path: Path, names: Sequence[str]) -> None:
        """Stores it for a library of these experts."""
        write_json(path, {"experts": list(names), "weight": self.weight.tolist(), "bias": self.bias.tolist()})

    @classmethod
    def read(cls, path: Path, names: Sequence[str]) -> Calibration | None:
        """What `write` has stored; None if there is nothing for just these experts.

        Raises:
            UserError: if the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["experts"] != list(names):
                return None
            calibration = cls(torch.tensor(document["weight"]), torch.tensor(document["bias"]))
            if calibration.weight.shape != (2 * len(names), len(names)) or calibration.bias.shape != (len(names),):
                raise ValueError("shapes that do not fit")
            return calibration
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it or calibrate again") from error


class PromptDispatcher:
    """Scores the experts' names and descriptions as the answer to "Category?".

    The categories are the library's experts, so that a new one needs no code. What stands before the question is the
    same for every prompt, and its keys and values are computed once. Answers are scored as constrained decoding would
    choose them, where a token counts only if it tells answers apart:

        log p(answer) = Σ_i log softmax over the tokens that may stand at i of logit(token_i)

    One prefill is enough wherever the answers differ in their first token. Small models favour some answers whatever
    the question; a calibration takes that off. Without one fitted on labelled prompts, the experts' own descriptions
    are asked about, and their mean score is taken off.

    Args:
        model: the base, with or without experts.
        categories: expert's name → description, K of them.
        expert: who reads the prompts: an expert that `model` carries; None is the base.
        calibration: fitted for these categories and this reader.
        least: the confidence below which the dispatcher abstains; 0 never abstains.
        soft: whether to mix the experts by their probabilities instead of choosing one.
        free: let the reader write its answer, and look for one of the names in it, as the paper does; slower, and an
            answer that names none or several abstains.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        categories: Mapping[str, str],
        *,
        expert: str | None = None,
        calibration: Calibration | None = None,
        least: float = 0.0,
        soft: bool = False,
        free: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.categories = dict(categories)
        self.reader = Mixture.of({} if expert is None else {expert: 1.0})
        self.calibration = calibration
        self.least = least
        self.soft = soft
        self.free = free
        self.batch_size = batch_size
        self._before, self._after = (
            tokenizer.encode(text, add_special_tokens=False) for text in _around(tokenizer, categories)
        )
        # The end of the turn tells an answer from a longer one that begins with it.
        self._names, self._descriptions = (
            [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for answer in answers]
            for answers in (categories.keys(), categories.values())
        )
        self._prefix: DynamicCache | None = None

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        if self.free:
            return self._written(prompts)
        if self.calibration is None:
            self.calibration = Calibration.centred(self.scores(list(self.categories.values())))
        logits = self.scores(prompts) @ self.calibration.weight + self.calibration.bias  # [B, K]
        probabilities = logits.softmax(1)
        return decide([*self.categories], probabilities, probabilities.max(1).values >= self.least, self.soft)

    @torch.inference_mode()
    def scores(self, prompts: Sequence[str | Chat]) -> Tensor:
        """log p(name | prompt) and log p(description | prompt) of every expert, side by side: [B, 2K]."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        room = context - len(self._before) - len(self._after) - max(map(len, self._names + self._descriptions))
        if room < 1:
            raise UserError(f"{len(self.categories)} categories leave no room for a question in {context} tokens")
        questions = [
            self.tokenizer.encode(question(prompt), add_special_tokens=False)[: min(room, LONGEST)]
            for prompt in prompts
        ]
        scores = torch.zeros(len(prompts), 2 * len(self.categories))
        by_length = sorted(range(len(prompts)), key=lambda row: len(questions[row]))
        with evaluating(self.model), under(self.model, self.reader):
            if self._prefix is None:
                self._prefix = DynamicCache(config=self.model.config.get_text_config())
                self._step(pad(self.model, self.tokenizer, [self._before]), self._prefix)
            for start in range(0, len(by_length), self.batch_size):
                rows = by_length[start : start + self.batch_size]
                cache = copy.deepcopy(self._prefix)
                cache.batch_repeat_interleave(len(rows))
                batch = pad(self.model, self.tokenizer, [questions[row] + self._after for row in rows])
                here = batch["attention_mask"]  # [B, T]
                batch["attention_mask"] = torch.cat([here.new_ones(len(rows), len(self._before)), here], 1)
                logits = self._step(batch, cache)  # [B, V]
                scores[rows] = torch.cat(
                    [
                        self._choose(logits, answers, 0, batch["attention_mask"], cache)
                        for answers in (self._names, self._descriptions)
                    ],
                    1,
                )
        return scores

    def _step(self, batch: Any, cache: DynamicCache) -> Tensor:
        """The logits [B, V] after tokens that follow the cached ones; the mask covers both."""
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, -batch["input_ids"].shape[1] :]
        output: Any = self.model(**batch, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        return output.logits[:, -1].float()

    def _choose(
        self, logits: Tensor, answers: Sequence[list[int]], depth: int, mask: Tensor, cache: DynamicCache
    ) -> Tensor:
        """log p of the rest of each answer [B, len(answers)]; their first `depth` tokens are the same, and cached."""
        tokens = sorted({answer[depth] for answer in answers})
        branches = logits[:, tokens].log_softmax(1).cpu()
        chosen = branches[:, [tokens.index(answer[depth]) for answer in answers]]
        for token in tokens:
            columns = [i for i, answer in enumerate(answers) if answer[depth] == token]
            same = [answers[i] for i in columns]
            if len(same) > 1 and any(answer != same[0] for answer in same):
                longer = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                following = self._step(
                    {"input_ids": torch.full_like(mask[:, :1], token), "attention_mask": longer}, cache
                )
                chosen[:, columns] += self._choose(following, same, depth + 1, longer, cache)
                cache.crop(-1)
        return chosen

    def _written(self, prompts: Sequence[str | Chat]) -> Mixture:
        names = list(self.categories)
        texts = generate(
            self.model,
            self.tokenizer,
            [asking(self.categories, question(prompt)) for prompt in prompts],
            max_new_tokens=max(map(len, self._names)),
            mixture=self.reader.expand(len(prompts)),
            batch_size=self.batch_size,
        )
        found = torch.tensor([[float(name.casefold() in text.casefold()) for name in names] for text in texts])
        return Mixture(tuple(names), found * (found.sum(1, keepdim=True) == 1))


def asking(categories: Mapping[str, str], asked: str) -> str:
    """The user turn that asks for the category of a question."""
    listed = "\n".join(f"- {name}: {description}" for name, description in categories.items())
    return TEMPLATE.format(categories=listed, question=asked)


def _around(tokenizer: PreTrainedTokenizerBase, categories: Mapping[str, str]) -> list[str]:
    """The text before and after the question, from the start of the chat to where the answer begins."""
    turn = {"role": "user", "content": asking(categories, MARK)}
    text: Any = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return text.split(MARK)
