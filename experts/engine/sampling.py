"""How the tokens of an answer are chosen, and which texts end it.

A row draws from numbers of its own, which follow from the seed and its prompt: its answer is the same in whatever batch
it is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from experts.mixture import Mixture
from experts.outside.errors import SEEDS, UserError, check_numbers, check_whole

MARGIN = 8
"""Tokens at the end of an answer that are looked at beyond those that a stop text can have: some show no text."""


GREEDILY = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None}
"""What only means something where tokens are drawn, and its value elsewhere."""


@dataclass(frozen=True)
class Sampling:
    """By default greedy, up to where the base ends.

    Raises:
        UserError: for what is no number or out of range, or a stop text that is empty or no string; for `top_p`,
            `top_k`, `min_p` or a seed without a temperature.
    """

    temperature: float = 0.0
    """What logits are divided by; 0 takes the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens are drawn from, as few as have this probability together."""
    seed: int | None = None
    """The same seed draws the same answer to a prompt; None takes one from PyTorch's own generator."""
    stop: Sequence[str] = ()
    """Texts that end an answer, and do not belong to it."""
    top_k: int = 0
    """Only so many of the most likely tokens are drawn from, and any as likely as the last of them; 0 is no limit."""
    min_p: float = 0.0
    """Only tokens are drawn from that have this share of the most likely one's probability."""
    repetition_penalty: float = 1.0
    """What the logits of tokens that prompt and answer have are divided by, multiplied where below 0, as in
    transformers: above 1 makes them less likely, without a temperature, too."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _check_number(name, getattr(self, name))
        check_numbers(self, least=[("temperature", 0), ("min_p", 0)], positive=["top_p", "repetition_penalty"])
        for name in ("top_p", "min_p"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} must be at most 1, not {getattr(self, name)}")
        check_whole("top_k", self.top_k, least=0)
        told = [name for name, without in GREEDILY.items() if getattr(self, name) != without]
        if self.greedy and told:
            raise UserError(
                f"{told[0]} is for tokens that are drawn, and without a temperature the most likely one is taken: give "
                f"a temperature above 0, or leave {told[0]} out"
            )
        if self.seed is not None:
            check_whole("seed", self.seed, least=0, most=SEEDS)
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stop = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(text, str) and text for text in stop):
            raise UserError("stop must be texts of one letter or more")
        object.__setattr__(self, "stop", stop)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def row_seeds(self, prompts: Sequence[Sequence[int]], mixture: Mixture | None) -> list[int]:
        """A seed for each row, from that of the call and the row's prompt (token ids).

        Rows that are equal in prompt and mixture draw differently: the first, the second and so on.
        """
        drawn = self.seed is None and not self.greedy  # which draws nothing
        seed = int(torch.randint(SEEDS, ())) if drawn else self.seed
        groups = [0] * len(prompts) if mixture is None else mixture.groups()
        seen: Counter[Any] = Counter()
        seeds = []
        for prompt, group in zip(prompts, groups, strict=True):
            key = (group, *prompt)
            named = f"{seed} {seen[key]} {list(prompt)}".encode()
            seen[key] += 1
            seeds.append(int.from_bytes(hashlib.sha256(named).digest()[:7]))  # 56 bits: any generator takes them
        return seeds


def _check_number(name: str, value: Any) -> None:
    try:
        right = not isinstance(value, bool | str | bytes) and float(value) is not None
    except (TypeError, ValueError, RuntimeError):
        right = False
    if not right:
        raise UserError(f"{name} must be a number, not {value!r:.60}")


GREEDY = Sampling()


def check_sampling(given: Any) -> None:
    """Raises UserError for what is no `Sampling`."""
    if not isinstance(given, Sampling):
        raise UserError(f"sampling must be a Sampling(temperature=…), not {given!r:.60}")


class Draws:
    """Draws the next token of rows, each from a generator of its own; one a call.

    Args:
        seeds: of all rows that may be named.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self._generators = [Random(seed) for seed in seeds]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Logits [B, V] of some rows → a token of each [B]."""
        tempered = (logits - logits.amax(1, keepdim=True)) / self.sampling.temperature
        # In the vocabulary's order, so that nearly equal probabilities may change places without any consequence.
        drawn = torch.tensor([self._generators[row].random() for row in rows], dtype=logits.dtype)
        return draw(candidates(tempered.softmax(1), self.sampling), drawn.to(logits.device))


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """A token of each row [B] by probabilities [B, V], whatever their sum, and numbers [B] between 0 and 1.

    `torch.multinomial` draws a number for every token of a vocabulary, which on a CPU takes far longer.
    """
    upto = p.cumsum(1)
    # A little below 1, so that rounding does not reach the sum.
    wanted = (uniform * (1 - 2**-20))[:, None].to(upto) * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True)[:, 0].clamp(max=p.shape[1] - 1)  # where p is NaN


def candidates(p: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V], 0 for tokens that are not drawn from, whatever the others' sum.

    In the order of vLLM: `min_p`, then `top_k`, and `top_p` of what these have left.
    """
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(1, keepdim=True), 0)
    if 0 < sampling.top_k < p.shape[1]:
        p = p.masked_fill(p < p.topk(sampling.top_k).values[:, -1:], 0)
    return nucleus(p / p.sum(1, keepdim=True), sampling.top_p)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Probabilities [B, V], 0 for all but the most likely tokens, of which as few are kept as have `top_p` together."""
    if top_p >= 1:
        return p
    ordered, tokens = p.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered  # what the more likely ones have
    return torch.zeros_like(p).scatter(1, tokens, ordered.masked_fill(before >= top_p, 0))


class DrawnTokens(LogitsProcessor):
    """For transformers' `generate`: leaves the token that is drawn as the only one.

    Args:
        rows: which of the draws' rows the batch has.
    """

    def __init__(self, draws: Draws, rows: Sequence[int]) -> None:
        self.draws, self.rows = draws, rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(scores, -torch.inf).scatter(1, self.draws(scores, self.rows)[:, None], 0)


@dataclass(frozen=True)
class Stops:
    """Whether an answer (token ids) shows one of the stop texts."""

    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[str]

    def __call__(self, answer: Sequence[int]) -> bool:
        if not self.texts:
            return False
        # A token that shows any text shows a byte or more. The whole is looked at only where the end says so.
        longest = max(len(text.encode()) for text in self.texts)
        return self._shown(answer[-longest - MARGIN :]) and self._shown(answer)

    def _shown(self, tokens: Sequence[int]) -> bool:
        text = cast(str, self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return any(stop in text for stop in self.texts)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=None)]


class Cutting:
    """`cut` of a text that comes in pieces; what may be the beginning of a stop text waits for the next piece."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.ended = False
        self._waiting = ""

    def add(self, piece: str) -> str:
        """What is known to belong to the text now."""
        self._waiting += "" if self.ended else piece
        if len(shown := cut(self._waiting, self.stop)) < len(self._waiting):
            self.ended, self._waiting = True, ""
            return shown
        begun = max((n for each in self.stop for n in range(len(each)) if self._waiting.endswith(each[:n])), default=0)
        shown = self._waiting[: len(self._waiting) - begun]
        self._waiting = self._waiting[len(shown) :]
        return shown

    def end(self) -> str:
        """What has waited, where nothing follows."""
        left, self._waiting = self._waiting, ""
        return left


def cut_stream(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """`cut` of a text that comes in pieces, as pieces."""
    cutting = Cutting(stop)
    for piece in pieces:
        yield from filter(None, [cutting.add(piece)])
        if cutting.ended:
            return
    yield from filter(None, [cutting.end()])
