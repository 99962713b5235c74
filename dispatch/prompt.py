"""The base itself names the domain of a prompt (arXiv 2501.06252, section 3.2, "prompt engineering")."""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, ProcessorMixin

from dispatch.base import Considered, question
from experts.engine import NativeEngine
from experts.engine.batches import pad_batch
from experts.engine.context import attention_window, context_of
from experts.engine.forward import evaluating, forward_cached, mixed
from experts.library import CLASSIFIER, ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import Chat, render, tokenize
from experts.outside.errors import UserError
from experts.outside.files import write_json
from experts.outside.pictures import text_tokenizer
from experts.outside.reading import read_json

TEMPLATE = "Categories:\n{categories}\n\n{question}\n\nCategory?"
# Stand-ins for the question: wherever the first is seen, the second must be too, unchanged.
MARKS = ("\x00", 'Is "Ä" > 1\\2,\n& why?')
Tokens = tuple[int, ...]
END = 40  # tokens read at either end of a question: what it is about shows there
BEFORE_A_NAME = 8  # tokens that a free answer may begin with, such as "The category is"
PARTING = r"[-_\s]+"  # what stands between the words of a name
# A letter of a script that separates words by spaces; Thai, Chinese, Japanese and their like do not.
LETTER = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"


@dataclass(frozen=True)
class Calibration:
    """Turns log-probabilities of names and descriptions into those of experts: softmax(scores · weight + bias)."""

    weight: Tensor  # [2K, K]
    bias: Tensor  # [K]

    @classmethod
    def centred(cls, scores: Tensor) -> Calibration:
        """Trusts the descriptions alone, less what each scores on average over `scores` [B, 2K]."""
        names = scores.shape[1] // 2
        weight = torch.cat([torch.zeros(names, names), torch.eye(names)])
        return cls(weight, -(scores @ weight).mean(0))

    @classmethod
    def of_names(cls, names: int) -> Calibration:
        """Trusts the names alone, uncorrected: a classification expert was trained on them."""
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
        """What `write` stored; None if there is nothing for exactly these experts.

        Raises:
            UserError: if the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            document = read_json(path)
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

    The categories are the library's experts, so a new one needs no code. The text before the question is the same for
    every prompt, and its keys and values are computed once. Answers are scored as constrained decoding would choose
    them, where a token counts only if it tells answers apart:

        log p(answer) = Σ_i log softmax(logits over the tokens possible at i)[token_i]

    The beginning that answers share is read after the question, in the same prefill. Only answers that branch in
    several places, not all on one path, need further passes. Small models favour some answers whatever the question; a
    calibration corrects that. Without one fitted on labelled prompts, the dispatcher asks about the experts' own
    descriptions and subtracts their mean score.

    Args:
        engine: runs the base; only the native one lets others look into it.
        categories: expert's name → description, K of them.
        expert: the expert that reads the prompts, which the engine carries; None for the base.
        calibration: fitted for these categories and this reader.
        min_confidence: the confidence below which the dispatcher abstains; 0 never abstains.
        soft: whether to mix the experts by their probabilities instead of choosing one.
        free: let the reader write its answer, and look for one of the names in it (`named`), as the paper does. This is
            slower, and the dispatcher abstains if the answer names none or several.

    Raises:
        UserError: if the base has no chat template that can ask for a category, or its tokenizer no end token.
    """

    def __init__(
        self,
        engine: NativeEngine,
        categories: Mapping[str, str],
        *,
        expert: str | None = None,
        calibration: Calibration | None = None,
        min_confidence: float = 0.0,
        soft: bool = False,
        free: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.engine = engine
        self.categories = dict(categories)
        self.reader = Mixture.of({} if expert is None else {expert: 1.0})
        self.calibration = calibration
        self.min_confidence = min_confidence
        self.soft = soft
        self.free = free
        self.batch_size = batch_size
        text = text_tokenizer(engine.tokenizer)
        pieces = _around(engine.tokenizer, categories)
        self._pieces = pieces and [text.encode(piece, add_special_tokens=False) for piece in pieces]
        self._before = self._pieces[0] if self._pieces else []
        # The end of the turn tells an answer from a longer one that begins with it.
        end = text.eos_token_id
        if end is None:
            raise UserError("the base's tokenizer has no end token, so a category's name would never end; set one")
        self._names, self._descriptions = (
            [(*text.encode(answer, add_special_tokens=False), end) for answer in answers]
            for answers in (categories.keys(), categories.values())
        )
        self._paths = _paths([*_branches(self._names), *_branches(self._descriptions)])
        config = engine.model.config
        self._context = context_of(config) or 1 << 30
        self._window = min(self._context, attention_window(config))
        self._prefix: tuple[Any, DynamicCache] | None = None

    @classmethod
    def from_library(cls, library: ExpertLibrary, engine: NativeEngine) -> PromptDispatcher:
        """Lets the base read the prompts, with the calibration in the library if it is for the library's experts."""
        calibration = Calibration.read(calibration_path(library, "prompt"), library.names)
        return cls(engine, library.descriptions(), calibration=calibration)

    @classmethod
    def of_classifier(cls, library: ExpertLibrary, engine: NativeEngine) -> PromptDispatcher:
        """Lets the library's classification expert read the prompts; without a calibration its names are trusted."""
        calibration = Calibration.read(calibration_path(library, CLASSIFIER), library.names)
        calibration = calibration or Calibration.of_names(len(library))
        return cls(engine, library.descriptions(), expert=CLASSIFIER, calibration=calibration)

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        return self._written(prompts) if self.free else self.consider(prompts).decide(self.soft)

    def consider(self, prompts: Sequence[str | Chat]) -> Considered:
        """As `Classifier.consider`; scores are the probabilities themselves. `free` is ignored."""
        if self.calibration is None:
            self.calibration = Calibration.centred(self.scores(list(self.categories.values())))
        logits = self.scores(prompts) @ self.calibration.weight + self.calibration.bias  # [B, K]
        probabilities = logits.softmax(1)
        return Considered(tuple(self.categories), probabilities, probabilities, self.min_confidence, "probability")

    @torch.inference_mode()
    def scores(self, prompts: Sequence[str | Chat]) -> Tensor:
        """log p(name | prompt) and log p(description | prompt) of every expert, side by side: [B, 2K]."""
        questions = [self._asked(question(prompt))[len(self._before) :] for prompt in prompts]
        scores = torch.zeros(len(prompts), 2 * len(self.categories))
        by_length = sorted(range(len(prompts)), key=lambda row: len(questions[row]))
        with evaluating(self.engine.model), mixed(self.engine.model, self.reader):
            prefix = self._read_before()
            for start in range(0, len(by_length), self.batch_size):
                rows = by_length[start : start + self.batch_size]
                scores[rows] = self._scores([questions[row] for row in rows], copy.deepcopy(prefix))
        return scores

    def _read_before(self) -> DynamicCache:
        """Keys and values of the text before a question, computed once per dtype and device of the model."""
        model = self.engine.model
        kept, place = self._prefix, (model.dtype, model.device)
        if kept is None or kept[0] != place:
            kept = place, DynamicCache(config=model.config.get_text_config())
            if self._before:
                before = torch.tensor([self._before], device=model.device)
                forward_cached(model, before, torch.ones_like(before), kept[1], keep=1)
            self._prefix = kept  # complete, as other threads see it from now on
        return kept[1]

    def _scores(self, questions: list[list[int]], cache: DynamicCache) -> Tensor:
        """`scores` of one batch; the cache holds the text before a question."""
        # The answers are a tree of tokens, and logits count only where it branches. The longest path to a branch is
        # read in one pass with the question; each other path is read alone, after the same question in the cache.
        cache.batch_repeat_interleave(len(questions))
        first, *others = self._paths
        model = self.engine.model
        batch = pad_batch(model, self.engine.tokenizer, [[*asked, *first] for asked in questions])
        here = batch["attention_mask"]  # [B, T]
        mask = torch.cat([here.new_ones(len(here), len(self._before)), here], 1)
        logits = forward_cached(model, batch["input_ids"], mask, cache, keep=len(first) + 1)
        found = {first[:depth]: logits[:, depth] for depth in range(len(first) + 1)}
        answer = mask.shape[1] - len(first)  # where it begins
        for path, previous in zip(others, self._paths, strict=False):
            cache.crop(-len(previous))
            ids = torch.tensor([path] * len(here)).to(here)
            longer = torch.cat([mask[:, :answer], torch.ones_like(ids)], 1)
            logits = forward_cached(model, ids, longer, cache, keep=len(path))
            found |= {path[: depth + 1]: logits[:, depth] for depth in range(len(path))}
        return torch.cat([_choose(answers, found) for answers in (self._names, self._descriptions)], 1).cpu()

    def _asked(self, asked: str) -> list[int]:
        """Tokens of the chat that asks for a question's category; a long question loses its middle."""
        text = text_tokenizer(self.engine.tokenizer)
        ids = text.encode(asked, add_special_tokens=False)
        for end in range(END, 0, -1):
            read = ids if len(ids) <= 2 * end else ids[:end] + ids[-end:]
            if self._pieces:
                first, *others = self._pieces
                chat = [*first, *(token for piece in others for token in (*read, *piece))]
            else:
                shown = asked if read is ids else cast(str, text.decode(read))
                chat = text.encode(
                    render(self.engine.tokenizer, [category_question(self.categories, shown)])[0],
                    add_special_tokens=False,
                )
            if len(chat) + max(map(len, self._paths)) <= self._window:
                return chat
        raise UserError(
            f"{len(self.categories)} categories leave no room for a question in {self._window} tokens; shorten the "
            "experts' descriptions, or dispatch by embedding"
        )

    def _written(self, prompts: Sequence[str | Chat]) -> Mixture:
        names = list(self.categories)
        new_tokens = BEFORE_A_NAME + max(map(len, self._names))
        texts = self.engine.generate(
            [self._turn(question(prompt), new_tokens) for prompt in prompts],
            max_new_tokens=new_tokens,
            mixture=self.reader.expand(len(prompts)),
            batch_size=self.batch_size,
        )
        found = torch.tensor(
            [[float(name in said) for name in names] for said in (named(text, names) for text in texts)]
        )
        return Mixture(tuple(names), found * (found.sum(1, keepdim=True) == 1))

    def _turn(self, asked: str, new_tokens: int) -> str:
        """The user turn that asks about a question, cut down to the question's two ends if it does not fit whole."""
        turn = category_question(self.categories, asked)
        if len(tokenize(self.engine.tokenizer, [turn])[0]) + new_tokens <= self._context:
            return turn
        text = text_tokenizer(self.engine.tokenizer)
        ids = text.encode(asked, add_special_tokens=False)
        return category_question(self.categories, cast(str, text.decode(ids[:END] + ids[-END:])))


def check_classifier(library: ExpertLibrary) -> None:
    """Raises UserError if a library has experts, but none that names domains."""
    if library.names and library.classifier is None:
        raise UserError(
            f"the library {library.folder} has no classification expert; train one (configs/smollm2-135m/"
            "classifier.yaml is an example) and add it with `selfadapt experts add FOLDER --classifier`"
        )


def calibration_path(library: ExpertLibrary, reader: str) -> Path:
    """The file in a library with the calibration of a reader of prompts, "prompt" or "classifier"."""
    return library.folder / f"{reader}_calibration.json"


def _branches(answers: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """Where answers branch: what they have in common so far → the tokens that may follow."""
    following: dict[Tokens, set[int]] = {}
    for answer in answers:
        for depth, token in enumerate(answer):
            following.setdefault(answer[:depth], set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items() if len(tokens) > 1}


def _paths(prefixes: Sequence[Tokens]) -> list[Tokens]:
    """The prefixes that no other prefix begins with, longest first."""
    kept: list[Tokens] = []
    for prefix in sorted({(), *prefixes}, key=len, reverse=True):
        if not any(longer[: len(prefix)] == prefix for longer in kept):
            kept.append(prefix)
    return kept


def _choose(answers: Sequence[Tokens], found: Mapping[Tokens, Tensor]) -> Tensor:
    """log p of each answer [B, K], from the logits [B, V] wherever answers branch."""
    total = found[()].new_zeros(len(found[()]), len(answers))
    for prefix, tokens in _branches(answers).items():
        logps = found[prefix][:, tokens].log_softmax(1)
        columns = [k for k, answer in enumerate(answers) if answer[: len(prefix)] == prefix]
        total[:, columns] += logps[:, [tokens.index(answers[k][len(prefix)]) for k in columns]]
    return total


def category_question(categories: Mapping[str, str], asked: str) -> str:
    """The user turn that asks for the category of a question."""
    listed = "\n".join(f"- {name}: {description}" for name, description in categories.items())
    return TEMPLATE.format(categories=listed, question=asked)


def named(text: str, names: Sequence[str]) -> set[str]:
    """The names that a text holds as separate words; where several begin at the same place, the longest.

    Case counts only where it tells two names apart, and a name's words may be joined in another way.

    >>> sorted(named("It is Math hard.", ["math", "math_hard"])), sorted(named("aftermath", ["math"]))
    (['math_hard'], [])
    """

    def plain(said: str) -> str:
        return re.sub(PARTING, "_", unicodedata.normalize("NFKC", said).casefold())

    alike: dict[str, list[str]] = {}
    for name in filter(None, names):
        alike.setdefault(plain(name), []).append(name)
    longest_first = "|".join(re.escape(key) for key in sorted(alike, key=len, reverse=True))
    found = set(re.findall(f"(?<!{LETTER})(?:{longest_first})(?!{LETTER})", plain(text))) if alike else set()
    return {name for key in found for name in [one for one in alike[key] if one in text] or alike[key]}


def _around(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, categories: Mapping[str, str]) -> list[str] | None:
    """The text before and after the question, and between if it is shown twice; None if it is shown altered."""
    marked, shown = render(tokenizer, [category_question(categories, mark) for mark in MARKS])
    pieces = marked.split(MARKS[0])
    return pieces if len(pieces) > 1 and MARKS[1].join(pieces) == shown else None
