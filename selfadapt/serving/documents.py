"""Answers as OpenAI's documents: whole, or in the pieces of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from experts.engine.requests import Ended, PromptRead, TokenLogp
from selfadapt.serving.answering import Answers
from selfadapt.serving.errors import RequestError
from selfadapt.serving.schemas import ChatOptions, CompletionOptions
from selfadapt.serving.texts import GrowingText


class Choice:
    """One answer of several, of which so much is known."""

    def __init__(self, answers: Answers, index: int) -> None:
        self.answers, self.index = answers, index
        self.text = GrowingText(answers.tokenizer, answers.request.sampling.stop)
        self.why: str | None = None
        self.logps: list[TokenLogp | int] = []  # tokens that nothing stands before have no likelihood
        self.new: list[TokenLogp | int] = []  # since a piece was last shown


async def whole(answers: Answers) -> dict[str, Any]:
    """The response to a request that wants no stream."""
    choices = [Choice(answers, index) for index in range(answers.rows)]
    async for event in answers.events():
        if isinstance(event, PromptRead):
            for choice in choices[event.prompt * answers.request.n : (event.prompt + 1) * answers.request.n]:
                choice.logps += _with_first(answers, event)
        elif isinstance(event, Ended):
            choices[event.row].why = event.why
        else:
            choices[event.row].text.tokens.append(event.token)
            if event.logp is not None:
                choices[event.row].logps.append(event.logp)
    shown = [_whole_choice(answers, choice) for choice in choices]
    return {**_head(answers, ""), "choices": shown, "usage": answers.usage}


async def pieces(answers: Answers) -> AsyncIterator[bytes]:
    """The events of a stream; what goes wrong after it has begun is one of them."""
    choices = [Choice(answers, index) for index in range(answers.rows)]
    head = _head(answers, ".chunk")
    if answers.options.usage_in_stream:
        head["usage"] = None

    def event(choice: Choice, text: str, first: bool = False) -> bytes:
        new, choice.new = choice.new, []
        return _event({**head, "choices": [_piece(answers, choice, text, new, first)]})

    try:
        if isinstance(answers.options, ChatOptions):
            for choice in choices:
                yield event(choice, "", first=True)
        async for heard in answers.events():
            if isinstance(heard, PromptRead):
                for choice in choices[heard.prompt * answers.request.n : (heard.prompt + 1) * answers.request.n]:
                    if _echo(answers):
                        choice.new += _with_first(answers, heard)
                        yield event(choice, _prompt_text(answers, heard.prompt))
                continue
            choice = choices[heard.row]
            if isinstance(heard, Ended):
                choice.why = heard.why
                yield event(choice, choice.text.end())
                continue
            text = choice.text.add(heard.token)
            if heard.logp is not None:
                choice.new.append(heard.logp)
            if text or choice.new:
                yield event(choice, text)
        if answers.options.usage_in_stream:
            yield _event({**head, "choices": [], "usage": answers.usage})
    except RequestError as error:
        yield _event(error.body)
    yield b"data: [DONE]\n\n"


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


def _echo(answers: Answers) -> bool:
    return isinstance(answers.options, CompletionOptions) and bool(answers.options.echo)


def _prompt_text(answers: Answers, prompt: int) -> str:
    asked = answers.prompts.asked[prompt]
    return asked if isinstance(asked, str) else ""


def _with_first(answers: Answers, read: PromptRead) -> Sequence[TokenLogp | int]:
    """What is known of all of a prompt's tokens, the first among them, where it was asked for."""
    wanted = answers.request.prompt_logprobs is not None
    return [answers.prompts.ids[read.prompt][0], *read.logps] if wanted else []


def _whole_choice(answers: Answers, choice: Choice) -> dict[str, Any]:
    text, finish = choice.text.whole, {"finish_reason": choice.why, "index": choice.index}
    asked = answers.request.logprobs is not None
    if isinstance(answers.options, ChatOptions):
        logprobs = _chat_logprobs(answers.tokenizer, choice.logps) if asked else None
        message = {"role": "assistant", "content": text, "refusal": None}
        return {**finish, "message": message, "logprobs": logprobs}
    if _echo(answers):
        text = _prompt_text(answers, choice.index // answers.request.n) + text
    return {**finish, "text": text, "logprobs": _logprobs(answers, choice.logps, 0) if asked else None}


def _piece(answers: Answers, choice: Choice, text: str, new: Sequence[TokenLogp | int], first: bool) -> dict[str, Any]:
    finish = {"index": choice.index, "finish_reason": choice.why}
    if isinstance(answers.options, ChatOptions):
        delta = {"role": "assistant", "content": ""} if first else {"content": text} if text else {}
        return {**finish, "delta": delta, "logprobs": _chat_logprobs(answers.tokenizer, new) if new else None}
    logprobs = None
    if new:
        logprobs = _logprobs(answers, new, sum(len(_said(answers.tokenizer, each)) for each in choice.logps))
        choice.logps += new
    return {**finish, "text": text, "logprobs": logprobs}


def _said(tokenizer: PreTrainedTokenizerBase, token: TokenLogp | int) -> str:
    return str(tokenizer.decode([token if isinstance(token, int) else token.token]))


def _chat_logprobs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[TokenLogp | int]) -> dict[str, Any]:
    def entry(token: int, logp: float) -> dict[str, Any]:
        said = str(tokenizer.decode([token]))
        return {"token": said, "logprob": logp, "bytes": list(said.encode())}

    content = [
        {**entry(each.token, each.logp), "top_logprobs": [entry(*pair) for pair in each.top]}
        for each in tokens
        if isinstance(each, TokenLogp)
    ]
    return {"content": content, "refusal": None}


def _logprobs(answers: Answers, tokens: Sequence[TokenLogp | int], start: int) -> dict[str, Any]:
    """`logprobs` of /v1/completions; the token itself is among the most likely ones, as in OpenAI's.

    Args:
        start: characters before these tokens.
    """
    said = [_said(answers.tokenizer, token) for token in tokens]
    offsets = [start + sum(map(len, said[:place])) for place in range(len(said))]
    top = [
        None
        if isinstance(each, int)
        else {
            str(answers.tokenizer.decode([token])): logp
            for token, logp in [*reversed(each.top), (each.token, each.logp)]
        }
        for each in tokens
    ]
    logps = [None if isinstance(each, int) else each.logp for each in tokens]
    return {"tokens": said, "token_logprobs": logps, "top_logprobs": top, "text_offset": offsets}
