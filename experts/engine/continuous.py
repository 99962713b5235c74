"""Continuous batching: one batch that always runs. Requests join it at the next token, each under its own mixture.

A thread owns the batch. It alternates between reading a piece of the newest prompts and writing a token of every
answer, so that a long prompt holds nobody up for long. Rows that end or are cancelled leave. When keys and values run
out of room, the youngest rows go back to waiting, and are read again.

transformers' own continuous batching lays the tokens of all requests end to end in one row. Only its manager knows
which request a token belongs to, so layers that run every row under its own mixture cannot tell. All requests also
share one sampling configuration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from threading import Condition, Thread
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from experts.engine.context import context_of
from experts.engine.decoding import LEAVE, Batch, Writing, end_tokens, most_likely, tokens_that_fit
from experts.engine.forward import evaluating, forward_cached, mixed
from experts.engine.growing_cache import ROOM, growing_cache
from experts.engine.kept_prefixes import BLOCK, Block, KeptPrefixes, begin
from experts.engine.native import NativeEngine
from experts.engine.requests import (
    Ended,
    PromptRead,
    Request,
    Row,
    TokenLogp,
    Why,
    Written,
    choose,
    refuse_unbounded,
    token_logps,
)
from experts.engine.sampling import Stops
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.outside.pictures import text_tokenizer
from experts.svf import SVFModel

PIECE = {"cpu": 256, "cuda": 8192}
"""The tokens of prompts that are read between two tokens of the answers."""

KEPT = 1 / 4
"""The tokens of past prompts that are kept beside the batch, as a share of those that it has room for."""

ALONE = 1 << 17
"""The tokens that a prompt and its answer may have where only one answer is written at a time."""


class QueueFull(Exception):
    """No more answers may wait."""


class Stopped(Exception):
    """The batch has been closed before an answer was complete."""


class ContinuousBatch:
    """Answers requests with any mixtures side by side, on the native engine.

    Each request is answered as if it were alone: a row's tokens and draws do not depend on what else is in the batch.
    Rows stay in factor space even if all share one mixture, because that may change with the next request.

    Args:
        rows: the most answers that are written at once.
        waiting: the most answers that may wait.
        tokens: the most tokens, over all rows, whose keys and values are kept; by default as `tokens_that_fit` says.
    """

    def __init__(self, engine: NativeEngine, *, rows: int = 32, waiting: int = 256, tokens: int | None = None) -> None:
        self.engine = engine
        self.rows, self.waiting = rows, waiting
        self._decodes = engine.decodes
        self.tokens = tokens or (tokens_that_fit(engine.model) if self._decodes else ALONE)
        self.context = min(context_of(engine.model.config) or self.tokens, self.tokens)
        self._waiting: deque[Row] = deque()
        self._batch = self._empty()
        self._row: dict[int, Row] = {}  # number → row, for all that are being read or written
        self._reading: _Reading | None = None
        self._kept = KeptPrefixes(int(KEPT * self.tokens))
        self._under = ExitStack()  # the mixture of the rows that `_mixing` names
        self._mixing: list[int] = []
        self._alike = False  # whether all rows must share one mixture because the base cannot mix rows
        self._changes: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._wake = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name="continuous batch", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Puts a request in the queue; from now on its `hear` is called.

        Raises:
            UserError: if a prompt is empty or does not fit the context with its answer, or the request wants more
                answers than may ever wait.
            QueueFull: if too many answers are already waiting.
            Stopped: if the batch is closed.
        """
        for prompt in request.prompts:
            asked = request.max_new_tokens
            if not prompt:
                raise UserError("a prompt has no tokens; give it one or more")
            if len(prompt) + (1 if asked is None else asked) > self.context:
                new, remedy = " exceeds", "shorten it"
                if asked is not None:
                    new, remedy = f" and {asked} new ones exceed", "shorten it or ask for fewer"
                raise UserError(f"a prompt of {len(prompt)} tokens{new} the context of {self.context} tokens; {remedy}")
        rows = [
            Row(request, place, self._limit(request, place // request.n))
            for place in range(len(request.prompts) * request.n)
        ]
        if len(rows) > self.waiting:
            raise UserError(f"{len(rows)} answers are asked for at once; ask for at most {self.waiting}")
        with self._wake:
            if self._closed:
                raise Stopped("the server is shutting down")
            if len(self._waiting) + len(rows) > self.waiting:
                self._waiting = deque(row for row in self._waiting if not row.gone)
            if len(self._waiting) + len(rows) > self.waiting:
                raise QueueFull(f"{len(self._waiting)} answers are already waiting; try again later")
            self._waiting += rows
            self._wake.notify()

    def close(self, patience: float | None = None) -> None:
        """Ends all answers that are not complete; their requests hear `Stopped`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(patience)

    def between(self, change: Callable[[], object]) -> None:
        """Runs `change`, which changes the engine, between two tokens and waits for it; raises what it raises."""
        made: Future[object] = Future()
        with self._wake:
            if self._closed:
                raise Stopped("the server is shutting down")
            self._changes.append((change, made))
            self._wake.notify()
        made.result()

    @property
    def running(self) -> int:
        """The number of answers that are being read or written."""
        return len(self._row)

    @property
    def queued(self) -> int:
        """The number of answers that wait."""
        return len(self._waiting)

    def in_use(self) -> Collection[str]:
        """The names of the experts and LoRAs that have a part in an answer that is not complete."""
        with self._wake:
            rows = [*self._waiting, *self._row.values()]
        return {name for row in rows for name in row.mixture.parts}

    def _limit(self, request: Request, prompt: int) -> int:
        left = self.context - len(request.prompts[prompt])
        return left if request.max_new_tokens is None else request.max_new_tokens

    # Everything below runs in the batch's own thread.

    def _run(self) -> None:
        while self._wait():
            try:
                self._change()
                with torch.inference_mode(), evaluating(self.engine.model):
                    while not (self._closed or self._changes) and (self._waiting or self._row):
                        self._turn()
                self._under.close()
                self._mixing = []
            except Exception as error:  # whatever it is, the batch keeps running for the next requests
                self._fail(error)
        with self._wake:
            left = [*self._waiting]
            self._waiting.clear()
        self._row |= {row.number: row for row in left}
        self._fail(Stopped("the server is shutting down"))
        for _, made in self._changes:
            made.set_exception(Stopped("the server is shutting down"))

    def _change(self) -> None:
        while self._changes:
            change, made = self._changes.popleft()
            try:
                made.set_result(change())
            except Exception as error:
                made.set_exception(error)
            self._kept.forget()
        self._batch.model = self.engine.model

    def _wait(self) -> bool:
        """Waits until there is something to do; False if the batch is closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._changes or self._waiting or self._row)
        return not self._closed

    def _fail(self, error: Exception) -> None:
        for request in {row.request: None for row in self._row.values() if not row.gone}:
            request.cancel()
            request.hear(error)
        self._under.close()
        self._row, self._reading, self._batch, self._mixing = {}, None, self._empty(), []

    def _empty(self) -> Batch:
        return Batch(self.engine.model, Writing(0, (), most_likely), None)

    def _turn(self) -> None:
        if not self._decodes:
            self._answer_alone()
            return
        self._let_go()
        if self._reading is None:
            self._begin()
        if self._reading is not None and self._reading.read_on(PIECE.get(self.engine.model.device.type, 8192)):
            reading, self._reading = self._reading, None
            self._join(reading)
        if self._batch.rows:
            self._write()

    def _answer_alone(self) -> None:
        """Answers the next waiting row, for bases that only transformers' `generate` can run."""
        with self._wake:
            row = self._waiting.popleft()
            self._row = {row.number: row}
        request = row.request
        if request.prompt_logprobs is not None:
            request.cancel()
            request.hear(UserError("this base can only answer prompts here, not compute how likely they are"))
        elif not row.gone:
            if row.is_first:
                request.hear(PromptRead(row.prompt, (), 0))

            def choose(ids: Tensor, logits: Tensor) -> Tensor:
                self._hand_out(logits, ids, [row])
                return torch.tensor([-1 if row.gone or self._closed else row.answer[-1]], device=ids.device)

            self.engine.generate_with(
                request.seen[row.prompt] if request.seen else None,
                [*request.prompts[row.prompt]],
                choose,
                max_new_tokens=max(1, row.limit),
                mixture=row.mixture,
            )
        if row.gone:
            self._row = {}

    @property
    def _written(self) -> list[Row]:
        return [self._row[number] for number in self._batch.rows]

    def _let_go(self) -> None:
        """Removes rows that have ended, several at a time, because removing copies the others."""
        rows = self._written
        still = [place for place, row in enumerate(rows) if not row.gone]
        gone = len(rows) - len(still)
        if gone and (not still or self._waiting or gone >= LEAVE * len(rows)):
            self._keep(still)
        if self._reading is not None and all(row.gone for row in self._reading.rows):
            for row in self._reading.rows:
                del self._row[row.number]
            self._reading = None

    def _keep(self, places: list[int]) -> None:
        for number in {*self._batch.rows} - {self._batch.rows[place] for place in places}:
            del self._row[number]
        if places:
            self._batch.keep(places)
        else:
            self._batch = self._empty()

    def _begin(self) -> None:
        """Starts to read the next waiting rows."""
        if not self._batch.rows:
            self._alike = not self._runs_rows()
        group: dict[Row, list[Block]] = {}  # row → what is kept of its prompt
        with self._wake:
            while self._waiting:
                row = self._waiting[0]
                if not row.gone:
                    if len(group) + len(self._batch.rows) >= self.rows:
                        break  # before anything is looked up, because this runs for every token
                    group[row] = self._begun(row)
                    if not self._fits(group):
                        del group[row]
                        break
                self._waiting.popleft()
            self._row |= {row.number: row for row in group}
        if group:
            self._reading = _Reading(self.engine, group, self._alike)

    def _begun(self, row: Row) -> list[Block]:
        """What is kept of a prompt's beginning; nothing if its likelihood is asked for."""
        return [] if row.tells_prompt else self._kept.find(row.under, row.reads)

    def _fits(self, group: Mapping[Row, Sequence[Block]]) -> bool:
        if len(group) == 1 and not self._batch.rows:
            return True
        lengths = [len(row.reads) for row in group]
        left = [length - BLOCK * len(blocks) for length, blocks in zip(lengths, group.values(), strict=True)]
        rows = len(group) + len(self._batch.rows)
        width = max(self._width, *lengths) + ROOM
        padded = max(left) * len(left) > 2 * sum(left)
        return rows * width <= self.tokens and not padded and self._share([*group, *self._written])

    def _share(self, rows: Sequence[Row]) -> bool:
        """Whether rows can share a batch."""
        return not self._alike or len({*Mixture.together([row.mixture for row in rows]).groups()}) == 1

    def _runs_rows(self) -> bool:
        base: Any = getattr(self.engine.model, "base_model", None)
        return isinstance(base, SVFModel) and base.runs_rows([*self.engine.experts])

    @property
    def _width(self) -> int:
        return self._batch.mask.shape[-1] if self._batch.rows else 0

    def _make_room(self, rows: int, width: int) -> None:
        """Sends the youngest rows back to waiting until `rows` more rows of `width` tokens have room."""

        def too_much() -> bool:
            there = len(self._batch.rows)
            return there > 0 and there + rows > 1 and (there + rows) * max(self._width + 1, width) > self.tokens

        if too_much():
            self._keep([place for place, row in enumerate(self._written) if not row.gone])
        while too_much():
            place = max(range(len(self._batch.rows)), key=lambda place: self._written[place].since)
            row = self._written[place]
            self._keep([other for other in range(len(self._batch.rows)) if other != place])
            with self._wake:
                self._waiting.appendleft(row)

    def _join(self, reading: _Reading) -> None:
        """Writes the first token of rows whose prompts have been read, and takes them into the batch."""
        for place, prompt in enumerate(reading.prompts):
            if prompt.is_first and not prompt.gone:
                prompt.request.hear(PromptRead(prompt.prompt, reading.logps[prompt], reading.begun[place]))
        reading.keep(self._kept)
        self._hand_out(reading.logits, reading.ids, [row if not row.answer else None for row in reading.rows])
        still = [place for place, row in enumerate(reading.rows) if not row.gone]
        for row in reading.rows:
            if row.gone:
                del self._row[row.number]
        if still:
            self._make_room(len(still), reading.ids.shape[1])
            rows = [reading.rows[place] for place in still]
            self._batch.take([row.number for row in rows], [row.answer for row in rows], *reading.of(still))

    def _write(self) -> None:
        self._make_room(0, 0)
        if self._mixing != self._batch.rows:
            self._under.close()
            self._under.enter_context(_mixed(self.engine, self._written, self._alike))
            self._mixing = [*self._batch.rows]
        self._hand_out(self._batch.read(), self._batch.ids, [None if row.gone else row for row in self._written])

    def _hand_out(self, logits: Tensor, ids: Tensor, rows: Sequence[Row | None]) -> None:
        """Chooses the next token of rows and tells their requests.

        Args:
            logits: of the next token [B, V].
            ids: all tokens so far [B, T].
            rows: [B]; None for a row that gets no token.
        """
        places = [place for place, row in enumerate(rows) if row is not None]
        if not places:
            return
        open_ = [cast(Row, rows[place]) for place in places]
        if len(places) < len(rows):
            logits, ids = logits[places], ids[places]
        errors = refuse_unbounded(logits)
        for row, error in zip(open_, errors, strict=True):
            if error is not None and not row.gone:
                row.request.cancel()
                row.request.hear(error)
        if any(errors):
            logits = logits.nan_to_num()
        config = self.engine.generation_config
        tokens = choose(logits, ids, open_, config.repetition_penalty or 1.0)
        logps = self._logps(logits, tokens, open_)
        for row, token, logp in zip(open_, tokens.tolist(), logps, strict=True):
            if row.gone:
                continue
            why: Why | None = "length" if row.limit == 0 else None
            if why is None:
                row.answer.append(token)
                row.request.hear(Written(row.place, token, logp))
                stops = Stops(text_tokenizer(self.engine.tokenizer), row.request.sampling.stop)
                stopped = token in end_tokens(config) or stops(row.answer)
                why = "stop" if stopped else "length" if len(row.answer) >= row.limit else None
            if why is not None:
                row.ended = True
                row.request.hear(Ended(row.place, why))

    @staticmethod
    def _logps(logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[TokenLogp | None]:
        asked = {place: row.request.logprobs for place, row in enumerate(rows) if row.request.logprobs is not None}
        if not asked:
            return [None] * len(rows)
        places = [*asked]
        found = dict(zip(places, token_logps(logits[places], tokens[places], max(asked.values())), strict=True))
        return [
            found[place]._replace(top=found[place].top[: asked[place]]) if place in found else None
            for place in range(len(rows))
        ]


class _Reading:
    """Prompts that are read side by side, piece by piece; a prompt of several answers is read once."""

    def __init__(self, engine: NativeEngine, group: Mapping[Row, Sequence[Block]], merge: bool) -> None:
        self.engine, self.rows, self._merge = engine, [*group], merge
        rows = self.rows
        keys: list[Any] = [row if row.answer else (row.request, row.prompt) for row in rows]
        first: dict[Any, Row] = {}
        for key, row in zip(keys, rows, strict=True):
            first.setdefault(key, row)
        self.prompts = [*first.values()]  # u rows
        reads = [row.reads for row in self.prompts]
        longest, device = max(map(len, reads)), engine.model.device
        self._ids = torch.tensor([[own[-1]] * (longest - len(own)) + own for own in reads], device=device)  # [u, T]
        self._mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in reads], device=device)
        place_of = {key: place for place, key in enumerate(first)}
        self._of_row = torch.tensor([place_of[key] for key in keys], device=device)  # [B]
        self._cache = growing_cache(engine.model.config.get_text_config())
        # All continue at the same column and read at least one token: a prompt with less left to read than another uses
        # less of what is kept.
        blocks = [group[row] for row in self.prompts]
        left = max(max(1, len(own) - BLOCK * len(kept)) for own, kept in zip(reads, blocks, strict=True))
        self._read = longest - left  # columns
        self.begun = [max(0, len(own) - left) for own in reads]  # tokens, [u]
        if self._read:
            begin(self._cache, blocks, self.begun)
        self.logps: dict[Row, list[TokenLogp]] = {row: [] for row in self.prompts}

    def read_on(self, tokens: int) -> bool:
        """Reads about so many more tokens; returns whether everything is read."""
        start, end = self._read, min(self._read + max(1, tokens // len(self.prompts)), self._ids.shape[1])
        wanted = [place for place, row in enumerate(self.prompts) if row.tells_prompt and not row.gone]
        with _mixed(self.engine, self.prompts, self._merge):
            logits = forward_cached(
                self.engine.model,
                self._ids[:, start:end],
                self._mask[:, :end],
                self._cache,
                keep=end - start if wanted else 1,
            )
        for place in wanted:
            first = int(self._mask[place].argmax())
            begin, final = max(start, first), min(end, self._ids.shape[1] - 1)  # the last token predicts the answer
            if begin < final:
                row = self.prompts[place]
                following = self._ids[place, begin + 1 : final + 1]
                own = logits[place, begin - start : final - start]
                self.logps[row] += token_logps(own, following, cast(int, row.request.prompt_logprobs))
        self._read, self._last = end, logits[:, -1]
        return end == self._ids.shape[1]

    def keep(self, kept: KeptPrefixes) -> None:
        """Keeps the prompts; to be called before the cache is given to the rows."""
        for place, row in enumerate(self.prompts):
            kept.keep(row.under, row.reads, self._cache, place)

    @property
    def logits(self) -> Tensor:
        """The logits of what follows each row [B, V]."""
        return self._last[self._of_row]

    @property
    def ids(self) -> Tensor:
        return self._ids[self._of_row]

    def of(self, places: Sequence[int]) -> tuple[Tensor, Tensor, DynamicCache]:
        """The tokens read [b, T] of some rows, their mask, and their cache, which is given away."""
        prompts = self._of_row[places]
        if prompts.tolist() != [*range(len(self.prompts))]:
            self._cache.batch_select_indices(prompts)
        return self._ids[prompts], self._mask[prompts], self._cache


def _mixed(engine: NativeEngine, rows: Sequence[Row], merge: bool) -> AbstractContextManager[None]:
    return mixed(engine.model, Mixture.together([row.mixture for row in rows]), merge=merge)
