"""One request: its prompts, who answers them, and the events of the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from experts.engine.continuous import QueueFull, Stopped
from experts.engine.requests import Ended, Event, PromptRead, Request, Written
from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompt, template_of, tokenize, whole_text
from experts.outside.errors import UserError
from experts.outside.pictures import text_tokenizer
from experts.outside.template_arguments import check_arguments
from selfadapt.serving.errors import RequestError
from selfadapt.serving.metrics import Metrics
from selfadapt.serving.names import UnknownModel, answered_by, asked_mixture
from selfadapt.serving.schemas import ChatOptions, CompletionOptions
from selfadapt.serving.served import Served
from selfadapt.serving.together import Dispatched, DispatchedTogether

RETRY_AFTER = "1"  # seconds
LAG = 4096
"""How many events a client may fall behind before its request is cancelled: unread events take memory."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a request."""

    asked: Sequence[str | Chat]
    """As a dispatcher reads them."""
    ids: Sequence[Sequence[int]]
    seen: Sequence[Chat] = ()
    """With their pictures."""


class Answering:
    """Answers the requests of one server."""

    def __init__(self, served: Served, metrics: Metrics) -> None:
        self.served, self.metrics = served, metrics
        self.together = DispatchedTogether()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return text_tokenizer(self.served.engine.tokenizer)

    async def begin(self, options: ChatOptions | CompletionOptions) -> Answers:
        """Dispatches a request and queues its answers.

        Raises:
            RequestError: if it cannot be answered.
        """
        await asyncio.to_thread(self.served.refresh)
        try:
            named = asked_mixture(
                options.model_dump(include={"model", "mixture"}), self.served.library, self.served.bases
            )
            prompts = await asyncio.to_thread(self._read, options)
            dispatched = await self._dispatched(prompts) if named is None else None
            mixture = dispatched.mixture if dispatched else cast(Mixture, named).expand(len(prompts.ids))
            answers = Answers(self, options, prompts, mixture, held=dispatched)
            self.served.batch.submit(answers.request)
        except UnknownModel as error:
            raise RequestError(404, str(error), param="model", code="model_not_found") from error
        except QueueFull as error:
            raise RequestError(429, str(error), headers={"Retry-After": RETRY_AFTER}) from error
        except Stopped as error:
            raise RequestError(503, str(error)) from error
        except UserError as error:
            raise RequestError(400, str(error)) from error
        self.metrics.count(mixture, answers.request.n)
        self.metrics.tokens.labels("prompt").inc(answers.prompt_tokens)
        return answers

    async def _dispatched(self, prompts: Prompts) -> Dispatched:
        start = time.perf_counter()
        dispatched = await self.together(self.served.dispatcher, prompts.asked)
        self.metrics.dispatch.observe(time.perf_counter() - start)
        return dispatched

    def _read(self, options: ChatOptions | CompletionOptions) -> Prompts:
        if isinstance(options, CompletionOptions):
            return self._texts(options)
        tokenizer = self.served.engine.tokenizer
        chat = cast(Chat, read_prompt(options.messages))
        if isinstance(options.messages, str):
            raise UserError("messages must be a list of messages")
        _refuse_addresses(chat)
        arguments = options.template_arguments
        check_arguments(template_of(tokenizer), arguments)
        seen = [chat] if isinstance(tokenizer, ProcessorMixin) else []
        return Prompts([chat], tokenize(tokenizer, [chat], **arguments), seen)

    def _texts(self, options: CompletionOptions) -> Prompts:
        if isinstance(self.served.engine.tokenizer, ProcessorMixin):
            raise UserError("this base reads pictures and answers only chats; use /v1/chat/completions")
        given = options.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = cast(Any, [given])
        if not given:
            raise UserError("prompt is empty; give a text, or several")
        size = len(cast(Any, self.tokenizer))
        ids, texts = [], []
        for prompt in cast(list[str | list[int]], given):
            if isinstance(prompt, str):
                texts.append(whole_text(prompt, "the prompt"))
                ids.append(cast(list[int], self.tokenizer(prompt)["input_ids"]))
            else:
                if not all(0 <= token < size for token in prompt):
                    raise UserError(f"prompt has a token that the base does not have; its tokens are 0 to {size - 1}")
                texts.append(cast(str, self.tokenizer.decode(prompt)))
                ids.append(prompt)
        return Prompts(texts, ids)


def _refuse_addresses(chat: Chat) -> None:
    """Raises UserError for a picture at an address: a server opens no files or addresses that somebody else names."""
    for message in chat:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image" and not str(part["image"]).startswith("data:image/"):
                raise UserError("a picture must come in the request itself, as data:image/…;base64,…")


class Answers:
    """The answers to a request: the events of all rows, as they are written."""

    def __init__(
        self,
        by: Answering,
        options: ChatOptions | CompletionOptions,
        prompts: Prompts,
        mixture: Mixture,
        held: object,
    ) -> None:
        self.by, self.options, self.prompts, self.mixture = by, options, prompts, mixture
        self.tokenizer = by.tokenizer
        names = {answered_by(mixture.rows([row]), by.served.base) for row in range(len(mixture))}
        self.who = names.pop() if len(names) == 1 else "auto"
        self.prompt_tokens = sum(map(len, prompts.ids))
        self.kept_tokens = 0  # of the prompts
        self.written = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.echo = isinstance(options, CompletionOptions) and bool(options.echo)
        logprobs = options.logprobs if isinstance(options, CompletionOptions) else _top(options)
        self.request = Request(
            prompts.ids,
            mixture,
            self._hear,
            max_new_tokens=options.new_tokens,
            sampling=options.sampling,
            n=options.n or 1,
            logprobs=logprobs,
            prompt_logprobs=logprobs if self.echo else None,
            seen=prompts.seen,
            held=held,
        )

    @property
    def rows(self) -> int:
        return len(self.prompts.ids) * self.request.n

    def rows_of(self, prompt: int) -> slice:
        """The answers to a prompt."""
        return slice(prompt * self.request.n, (prompt + 1) * self.request.n)

    @property
    def usage(self) -> dict[str, Any]:
        read, written = self.prompt_tokens, self.written
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": self.kept_tokens},
        }

    async def events(self) -> AsyncIterator[PromptRead | Written | Ended]:
        """Yields events until all rows have ended; closing the iterator cancels the request.

        Raises:
            RequestError: if the answers cannot be finished.
        """
        start, left = time.perf_counter(), self.rows
        try:
            while left:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise _failure(event) from event
                if isinstance(event, PromptRead):
                    self.kept_tokens += event.kept
                    self.by.metrics.tokens.labels("kept").inc(event.kept)
                if isinstance(event, Written):
                    if not self.written:
                        self.by.metrics.first.observe(time.perf_counter() - start)
                    self.written += 1
                left -= isinstance(event, Ended)
                yield event
            self.by.metrics.answer.observe(time.perf_counter() - start)
        finally:
            self.request.cancel()
            self.by.metrics.tokens.labels("answer").inc(self.written)

    def _hear(self, event: Event) -> None:
        if self._events.qsize() >= LAG:
            self.request.cancel()
            event = UserError("the answer is read more slowly than it is written; ask for less at once")
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _top(options: ChatOptions) -> int | None:
    if options.top_logprobs and not options.logprobs:
        raise RequestError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return (options.top_logprobs or 0) if options.logprobs else None


def _failure(error: Exception) -> RequestError:
    if isinstance(error, UserError):
        return RequestError(400, str(error))
    if isinstance(error, Stopped):
        return RequestError(503, str(error))
    return RequestError(500, f"the answer could not be written: {type(error).__name__}")
