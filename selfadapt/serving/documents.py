"""Answers as OpenAI's documents: whole, or in the pieces of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from experts.engine.requests import Ended, PromptRead, TokenLogp, Why
from selfadapt.serving.answering import Answers
from selfadapt.serving.errors import RequestError
from selfadapt.serving.schemas import ChatOptions, CompletionOptions
from selfadapt.serving.texts import GrowingText


async def whole(answers: Answers) -> dict[str, Any]:
    """The response to a request that does not ask for a stream."""
    choices = [Choice(answers, row) for row in range(answers.rows)]
    async for event in answers.events():
        if isinstance(event, PromptRead):
            for choice in choices[answers.rows_of(event.prompt)]:
                choice.new += choice.known_of_prompt(event)
        elif isinstance(event, Ended):
            choices[event.row].why = event.why
        else:
            choices[event.row].add(event.token, event.logp)
    return {**_head(answers, ""), "choices": [choice.whole for choice in choices], "usage": answers.usage}


async def pieces(answers: Answers) -> AsyncIterator[bytes]:
    """The events of a stream; an error after it has begun is one of them."""
    choices = [Choice(answers, row) for row in range(answers.rows)]
    head = _head(answers, ".chunk")
    if answers.options.usage_in_stream:
        head["usage"] = None

    def event(piece: dict[str, Any]) -> bytes:
        return _event({**head, "choices": [piece]})

    try:
        if isinstance(answers.options, ChatOptions):
            for choice in choices:
                yield event(choice.opening)
        async for heard in answers.events():
            if isinstance(heard, PromptRead):
                for choice in choices[answers.rows_of(heard.prompt)] if answers.echo else ():
                    choice.new += choice.known_of_prompt(heard)
                    yield event(choice.piece(choice.prompt_text))
                continue
            choice = choices[heard.row]
            if isinstance(heard, Ended):
                choice.why = heard.why
                yield event(choice.piece(choice.text.end()))
            elif (text := choice.add(heard.token, heard.logp)) or choice.new:
                yield event(choice.piece(text))
        if answers.options.usage_in_stream:
            yield _event({**head, "choices": [], "usage": answers.usage})
    except RequestError as error:
        yield _event(error.body)
    yield b"data: [DONE]\n\n"


class Choice:
    """One answer of several, as far as it is known."""

    def __init__(self, answers: Answers, row: int) -> None:
        self.answers, self.row = answers, row
        self.text = GrowingText(answers.tokenizer, answers.request.sampling.stop)
        self.why: Why | None = None
        self.new: list[TokenLogp | int] = []
        """Tokens not yet shown, if their likelihoods are asked for; the first token of a prompt has none."""
        self._characters = 0  # of the tokens that were shown

    def add(self, token: int, logp: TokenLogp | None) -> str:
        """Adds a token; returns the text that is certain now."""
        if logp is not None:
            self.new.append(logp)
        return self.text.add(token)

    def known_of_prompt(self, read: PromptRead) -> Sequence[TokenLogp | int]:
        """All tokens of a prompt, if their likelihoods were asked for."""
        wanted = self.answers.request.prompt_logprobs is not None
        return [self.answers.prompts.ids[read.prompt][0], *read.logps] if wanted else []

    @property
    def prompt_text(self) -> str:
        asked = self.answers.prompts.asked[self.row // self.answers.request.n]
        return asked if isinstance(asked, str) else ""

    @property
    def whole(self) -> dict[str, Any]:
        head = {"index": self.row, "finish_reason": self.why, "logprobs": self._logprobs()}
        if isinstance(self.answers.options, CompletionOptions):
            return {**head, "text": (self.prompt_text if self.answers.echo else "") + self.text.whole}
        return {**head, "message": {"role": "assistant", "content": self.text.whole, "refusal": None}}

    @property
    def opening(self) -> dict[str, Any]:
        return {**self.piece(""), "delta": {"role": "assistant", "content": ""}}

    def piece(self, text: str) -> dict[str, Any]:
        """Some more of the text, and the likelihoods of what has been written since."""
        head = {"index": self.row, "finish_reason": self.why, "logprobs": self._logprobs() if self.new else None}
        if isinstance(self.answers.options, CompletionOptions):
            return {**head, "text": text}
        return {**head, "delta": {"content": text} if text else {}}

    def _logprobs(self) -> dict[str, Any] | None:
        """The likelihoods of the tokens that were not yet shown."""
        if self.answers.request.logprobs is None:
            return None
        new, self.new = self.new, []
        return self._of_chat(new) if isinstance(self.answers.options, ChatOptions) else self._of_completion(new)

    def _of_chat(self, tokens: Sequence[TokenLogp | int]) -> dict[str, Any]:
        def entry(token: int, logp: float) -> dict[str, Any]:
            said = self._said(token)
            return {"token": said, "logprob": logp, "bytes": list(said.encode())}

        content = [
            {**entry(each.token, each.logp), "top_logprobs": [entry(*pair) for pair in each.top]}
            for each in tokens
            if isinstance(each, TokenLogp)
        ]
        return {"content": content, "refusal": None}

    def _of_completion(self, tokens: Sequence[TokenLogp | int]) -> dict[str, Any]:
        """As in OpenAI's responses, a token itself is listed among the most likely ones."""
        shown: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in tokens:
            token, logp, top = (each, None, None) if isinstance(each, int) else each
            said = self._said(token)
            shown["tokens"].append(said)
            shown["token_logprobs"].append(logp)
            # Of tokens that show the same text, such as parts of characters, the likeliest stays.
            pairs = None if top is None else [(token, logp), *reversed(top)]
            shown["top_logprobs"].append(None if pairs is None else {self._said(one): p for one, p in pairs})
            shown["text_offset"].append(self._characters)
            self._characters += len(said)
        return shown

    def _said(self, token: int) -> str:
        return str(self.answers.tokenizer.decode([token]))


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def _head(answers: Answers, part: str) -> dict[str, Any]:
    chat = isinstance(answers.options, ChatOptions)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": f"chat.completion{part}" if chat else "text_completion",
        "created": int(time.time()),
        "model": answers.who,
        "system_fingerprint": None,
    }
