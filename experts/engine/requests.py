"""Requests to a batch that always runs (`experts.engine.continuous`), and the events that they hear."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from experts.engine.lora_cache import mixture_name
from experts.engine.sampling import GREEDY, Draws, Sampling
from experts.mixture import Mixture
from experts.outside.chats import Chat
from experts.outside.errors import UserError


class TokenLogp(NamedTuple):
    """A token that was read or written, how likely the model found it, and which tokens it found most likely.

    Likelihoods are in nats, of the model's own distribution: before penalties, temperature and the rest of sampling.
    """

    token: int
    logp: float
    top: Sequence[tuple[int, float]]


class PromptRead(NamedTuple):
    """A prompt has been read. `logps` are those of its tokens except the first, if they were asked for.

    The keys and values of the first `kept` tokens were there already.
    """

    prompt: int
    logps: Sequence[TokenLogp]
    kept: int


class Written(NamedTuple):
    """The next token of a row's answer; a token that ends the answer is also part of it."""

    row: int
    token: int
    logp: TokenLogp | None


Why = Literal["stop", "length"]


class Ended(NamedTuple):
    """A row's answer is complete: the base or a stop text ended it, or it has reached its maximum length."""

    row: int
    why: Why


Event = PromptRead | Written | Ended | Exception
"""An exception is the last event of a request."""


@dataclass(eq=False)
class Request:
    """Some prompts, answered `n` times each; row b·n + i is the i-th answer to prompt b.

    Args:
        prompts: token ids.
        mixture: one row per prompt.
        hear: called by the thread that runs the batch; it must not hold that thread up.
        max_new_tokens: of each answer; None is all that the context leaves, 0 only reads.
        logprobs: tell how likely each token of the answers is, and so many of the most likely ones; None tells nothing.
        prompt_logprobs: the same for the prompts' tokens.
        seen: the chats themselves, if a vision-language model is to look at their pictures.
        held: lives as long as the request does, to keep its experts there.
    """

    prompts: Sequence[Sequence[int]]
    mixture: Mixture
    hear: Callable[[Event], None]
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seen: Sequence[Chat] = ()
    held: object = None
    cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Ends the request because whoever asked has gone: the rows leave at the next token."""
        self.cancelled = True

    @cached_property
    def draws(self) -> Draws:
        """The draws of all rows, equal to those of a list of the same prompts, each repeated `n` times."""
        repeated = [prompt for prompt in self.prompts for _ in range(self.n)]
        return Draws(self.sampling, self.sampling.row_seeds(repeated, None))


_numbers = itertools.count()


@dataclass(eq=False)
class Row:
    """One answer that is being written, or waits to be."""

    request: Request
    place: int
    limit: int
    """The most tokens that its answer may have."""
    answer: list[int] = field(default_factory=list)
    ended: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    since: float = field(default_factory=time.perf_counter)

    @property
    def prompt(self) -> int:
        return self.place // self.request.n

    @property
    def is_first(self) -> bool:
        """Whether this is the first answer to its prompt and nothing of it has been written yet."""
        return not self.answer and self.place % self.request.n == 0

    @property
    def tells_prompt(self) -> bool:
        """Whether the row must still tell how likely the tokens of its prompt are."""
        return self.request.prompt_logprobs is not None and self.is_first

    @cached_property
    def mixture(self) -> Mixture:
        return self.request.mixture.rows([self.prompt])

    @cached_property
    def under(self) -> str:
        """The unique name of its mixture."""
        return mixture_name(self.mixture)

    @property
    def reads(self) -> list[int]:
        """The tokens to read before the next one can be written, except the last token of the answer."""
        return [*self.request.prompts[self.prompt], *self.answer[:-1]]

    @property
    def gone(self) -> bool:
        return self.ended or self.request.cancelled


def choose(logits: Tensor, ids: Tensor, rows: Sequence[Row], penalty: float) -> Tensor:
    """Chooses each row's next token [B] as its request asks, from logits [B, V] and all tokens so far [B, T].

    Args:
        penalty: the checkpoint's own penalty on repetition, for requests that give none.
    """
    penalties = [row.request.sampling.repetition_penalty for row in rows]
    penalties = [penalty if own == 1 else own for own in penalties]
    for each in {*penalties} - {1.0}:
        places = [place for place, own in enumerate(penalties) if own == each]
        penalized = RepetitionPenaltyLogitsProcessor(each)(cast(Any, ids[places]), cast(Any, logits[places]))
        logits = logits.index_copy(0, torch.tensor(places, device=logits.device), cast(Tensor, penalized))
    following = logits.argmax(1)
    drawing: dict[Request, list[int]] = {}
    for place, row in enumerate(rows):
        if not row.request.sampling.greedy and not row.gone:
            drawing.setdefault(row.request, []).append(place)
    for request, places in drawing.items():
        following[places] = request.draws(logits[places], [rows[place].place for place in places])
    return following


def token_logps(logits: Tensor, tokens: Tensor, top: int) -> list[TokenLogp]:
    """How likely each of the tokens [B] is under its own logits [B, V], with the `top` most likely tokens."""
    logps = logits.log_softmax(1)
    own = logps.gather(1, tokens[:, None])[:, 0].tolist()
    best = logps.topk(min(top, logps.shape[1]), 1)
    pairs = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return [TokenLogp(*each) for each in zip(tokens.tolist(), own, pairs, strict=True)]


def refuse_unbounded(logits: Tensor) -> list[UserError | None]:
    """For each row of logits [B, V], an error if its mixture has made numbers that are not finite, else None."""
    said = "the weights of the mixture are too large: the numbers are no longer finite; give smaller weights"
    return [None if finite else UserError(said) for finite in logits.amax(1).isfinite().tolist()]
