"""What is asked of a batch that always runs (`experts.engine.continuous`), and what is heard of the answers."""

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
    """A token that was read or written, how likely the model held it to be, and which tokens it held most likely.

    In nats, of the model's own distribution: before penalties, temperature and the rest of sampling.
    """

    token: int
    logp: float
    top: Sequence[tuple[int, float]]


class PromptRead(NamedTuple):
    """A prompt has been read. `logps` are of its tokens but the first, where they were asked for.

    Of so many tokens as were `kept`, keys and values were there already.
    """

    prompt: int
    logps: Sequence[TokenLogp]
    kept: int


class Written(NamedTuple):
    """The next token of a row's answer, which belongs to it also where it ends it."""

    row: int
    token: int
    logp: TokenLogp | None


Why = Literal["stop", "length"]


class Ended(NamedTuple):
    """A row's answer is complete: the base or a stop text ended it, or it is as long as it may be."""

    row: int
    why: Why


Event = PromptRead | Written | Ended | Exception
"""An exception is the last thing that is heard of a request."""


@dataclass(eq=False)
class Request:
    """Some prompts, answered `n` times each; row b·n + i is the i-th answer to prompt b.

    Args:
        prompts: token ids.
        mixture: one row a prompt.
        hear: is called by the thread that runs the batch, which it must not hold up.
        max_new_tokens: of each answer; None is what the context leaves. 0 only reads.
        logprobs: hear how likely tokens of the answers are, beside so many of the most likely ones; None is not at all.
        prompt_logprobs: the same of the prompts' tokens.
        seen: the chats themselves, where a vision-language model is to look at their pictures.
        held: lives for as long as the request: what its experts are there for.
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
        """Whoever asked has gone: the rows leave at the next token."""
        self.cancelled = True

    @cached_property
    def draws(self) -> Draws:
        """Of all rows: those of the same prompts, given as a list, each as often as it is answered."""
        repeated = [prompt for prompt in self.prompts for _ in range(self.n)]
        return Draws(self.sampling, self.sampling.row_seeds(repeated, None))


_numbers = itertools.count()


@dataclass(eq=False)
class Row:
    """One answer that is written, or waits to be."""

    request: Request
    place: int
    limit: int
    """Of the tokens in its answer."""
    answer: list[int] = field(default_factory=list)
    ended: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    since: float = field(default_factory=time.perf_counter)

    @property
    def prompt(self) -> int:
        return self.place // self.request.n

    @property
    def is_first(self) -> bool:
        """Whether nothing has been written to its prompt yet."""
        return not self.answer and self.place % self.request.n == 0

    @property
    def tells_prompt(self) -> bool:
        """Whether it is to say how likely the tokens of its prompt are."""
        return self.request.prompt_logprobs is not None and self.is_first

    @cached_property
    def mixture(self) -> Mixture:
        return self.request.mixture.rows([self.prompt])

    @cached_property
    def under(self) -> str:
        """The one name of its mixture."""
        return mixture_name(self.mixture)

    @property
    def reads(self) -> list[int]:
        """What must be read before the next token can be written, but for the last token of the answer."""
        return [*self.request.prompts[self.prompt], *self.answer[:-1]]

    @property
    def gone(self) -> bool:
        return self.ended or self.request.cancelled


def choose(logits: Tensor, ids: Tensor, rows: Sequence[Row], penalty: float) -> Tensor:
    """The next token of each row [B], as its request has it, from logits [B, V] and all tokens so far [B, T].

    Args:
        penalty: the checkpoint's own on repetition, where a request asks for none.
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
    """How likely tokens [B] are, each by its own logits [B, V], beside the `top` most likely ones."""
    logps = logits.log_softmax(1)
    own = logps.gather(1, tokens[:, None])[:, 0].tolist()
    best = logps.topk(min(top, logps.shape[1]), 1)
    pairs = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return [TokenLogp(*each) for each in zip(tokens.tolist(), own, pairs, strict=True)]


def refuse_unbounded(logits: Tensor) -> list[UserError | None]:
    """What to say to each row of logits [B, V]: an error where its mixture has made numbers without bounds."""
    said = "the weights of the mixture are too large: they make numbers without bounds"
    return [None if finite else UserError(said) for finite in logits.amax(1).isfinite().tolist()]
