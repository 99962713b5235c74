"""How the tokens of an answer are chosen, and which texts end it.

A row draws its own random numbers, which follow from the seed and its prompt, so its answer is the same in any batch.
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
from experts.outside.chats import whole_text
from experts.outside.errors import SEEDS, UserError, check_numbers, check_whole

MARGIN = 8
"""Further tokens that are looked at at an answer's end, beyond as many as a stop text can have: some show no text."""


GREEDILY = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None}
"""The settings that only matter where tokens are drawn, and their values elsewhere."""


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen; by default greedily, until the base ends the answer.

    Raises:
        UserError: if a value is not a number or is out of range, a stop text is empty, not a string or holds
            half a character, or `top_p`, `top_k`, `min_p` or a seed is given without a temperature.
    """

    temperature: float = 0.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Draws only from the smallest set of most likely tokens that have this probability together."""
    seed: int | None = None
    """The same seed draws the same answer to a prompt; None takes one from PyTorch's own generator."""
    stop: Sequence[str] = ()
    """Texts that end an answer and are not part of it."""
    top_k: int = 0
    """Draws only from so many of the most likely tokens, and any as likely as the last of them; 0 is no limit."""
    min_p: float = 0.0
    """Draws only from tokens that have at least this share of the most likely token's probability."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that are in the prompt or the answer already, or multiplies them where they are
    below 0, as in transformers: a value above 1 makes these tokens less likely, in greedy decoding too."""

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
                f"{told[0]} only matters when tokens are drawn, and without a temperature the most likely one is "
                f"taken: give a temperature above 0, or leave {told[0]} out"
            )
        if self.seed is not None:
            check_whole("seed", self.seed, least=0, most=SEEDS)
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stop = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(text, str) and text for text in stop):
            raise UserError("stop must be texts, none of them empty")
        object.__setattr__(self, "stop", tuple(whole_text(cast(str, text), "a text in stop") for text in stop))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def row_seeds(self, prompts: Sequence[Sequence[int]], mixture: Mixture | None) -> list[int]:
        """A seed for each row, from the call's seed and the row's prompt (token ids).

        Rows with the same prompt and mixture still draw differently: the first, the second and so on.
        """
        drawn = self.seed is None and not self.greedy  # greedy draws nothing
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
    """Raises UserError if `given` is not a `Sampling`."""
    if not isinstance(given, Sampling):
        raise UserError(f"sampling must be a Sampling(temperature=…), not {given!r:.60}")


class Draws:
    """Draws the next token of rows, each from its own generator. There is one `Draws` per call.

    Args:
        seeds: one for every row that may be named.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self._generators = [Random(seed) for seed in seeds]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Logits [B, V] of some rows → a token of each [B]."""
        tempered = (logits - logits.amax(1, keepdim=True)) / self.sampling.temperature
        # In the vocabulary's order, so that it does not matter if nearly equal probabilities change places.
        drawn = torch.tensor([self._generators[row].random() for row in rows], dtype=logits.dtype)
        return draw(candidates(tempered.softmax(1), self.sampling), drawn.to(logits.device))


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """One token per row [B], from probabilities [B, V] of any sum and random numbers [B] between 0 and 1.

    `torch.multinomial` draws a number for every token of the vocabulary, which takes far longer on a CPU.
    """
    upto = p.cumsum(1)
    # A little below 1, so that rounding does not reach the sum itself.
    wanted = (uniform * (1 - 2**-20))[:, None].to(upto) * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True)[:, 0].clamp(max=p.shape[1] - 1)  # clamped in case p is NaN


def candidates(p: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V], set to 0 for tokens that are not to be drawn; the rest need not sum to 1.

    The order is vLLM's: `min_p`, then `top_k`, then `top_p` of what these leave.
    """
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(1, keepdim=True), 0)
    if 0 < sampling.top_k < p.shape[1]:
        p = p.masked_fill(p < p.topk(sampling.top_k).values[:, -1:], 0)
    return nucleus(p / p.sum(1, keepdim=True), sampling.top_p)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Probabilities [B, V], 0 outside the smallest set of most likely tokens that have `top_p` together."""
    if top_p >= 1:
        return p
    ordered, tokens = p.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered  # of the more likely tokens
    return torch.zeros_like(p).scatter(1, tokens, ordered.masked_fill(before >= top_p, 0))


class DrawnTokens(LogitsProcessor):
    """For transformers' `generate`: leaves only the token that is drawn.

    Args:
        rows: the draws' rows that the batch holds.
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
        # A token that shows any text shows at least a byte. The whole text is searched only if its end has a stop text.
        longest = max(len(text.encode()) for text in self.texts)
        return self._shown(answer[-longest - MARGIN :]) and self._shown(answer)

    def _shown(self, tokens: Sequence[int]) -> bool:
        text = cast(str, self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return any(stop in text for stop in self.texts)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text in it."""
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=None)]


class Cutting:
    """`cut` for a text that comes in pieces; what may be the beginning of a stop text waits for the next piece."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.ended = False
        self._waiting = ""

    def add(self, piece: str) -> str:
        """The further text that is now known to belong to the answer."""
        self._waiting += "" if self.ended else piece
        if len(shown := cut(self._waiting, self.stop)) < len(self._waiting):
            self.ended, self._waiting = True, ""
            return shown
        begun = max((n for each in self.stop for n in range(len(each)) if self._waiting.endswith(each[:n])), default=0)
        shown = self._waiting[: len(self._waiting) - begun]
        self._waiting = self._waiting[len(shown) :]
        return shown

    def end(self) -> str:
        """The text that was still waiting, once nothing follows."""
        left, self._waiting = self._waiting, ""
        return left


def cut_stream(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """`cut` for a text that comes in pieces; yields pieces."""
    cutting = Cutting(stop)
    for piece in pieces:
        yield from filter(None, [cutting.add(piece)])
        if cutting.ended:
            return
    yield from filter(None, [cutting.end()])
