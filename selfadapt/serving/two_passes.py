"""Middleware for vLLM's server: `auto` becomes the mixture that a prompt asks for, and its LoRA is there in time.

    vllm serve BASE --enable-lora … --middleware selfadapt.serving.TwoPasses

vLLM asks a plugin (selfadapt.serving.vllm_plugin) for the LoRA that a model name stands for, but shows it no prompt,
and never says when it no longer needs it. This ASGI middleware stands before it, sees prompts, and keeps a request's
LoRA on disk until the request is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

from dispatch import Dispatcher, find_dispatcher
from experts.engine.lora_cache import LoraCache, mixture_name
from experts.mixture import Mixture
from experts.naming import AUTO
from experts.outside.chats import Chat, read_prompt
from experts.outside.errors import UserError
from experts.outside.files import expand
from selfadapt.base_models import load_base
from selfadapt.serving.names import asked_mixture, is_asked
from selfadapt.two_pass import find_library

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LISTED = ("/v1/models", "GET")
ASKED = ("/v1/chat/completions", "/v1/completions")
LENGTHS = (b"content-length", b"transfer-encoding")  # headers that say how long a body is


class Serving(NamedTuple):
    """What the middleware and the plugin of one server share."""

    loras: LoraCache
    dispatcher: Dispatcher
    base: str
    """Where the base was loaded from."""


@cache
def serving() -> Serving:
    """The library `$SELFADAPT_LIBRARY` (a folder; by default that of the built-in base), dispatched by
    `$SELFADAPT_DISPATCH` ("embedding" by default, an expert, or a `MIX.json`).

    Raises:
        UserError: if there is no such library, its base cannot be loaded, or the dispatcher needs the base.
    """
    folder = os.environ.get("SELFADAPT_LIBRARY")
    library = find_library(None, expand(folder) if folder else None)
    dispatcher = find_dispatcher(os.environ.get("SELFADAPT_DISPATCH", "embedding"), library)
    base, _ = load_base(library.base)
    return Serving(LoraCache(library, base), dispatcher, str(base.name_or_path))


class TwoPasses:
    """ASGI middleware: pass one for requests to the model `auto`, and a hold on the LoRA of every mixture.

    A mixture gets one name, in whatever order and digits it was asked for, and the response has that name. Requests
    that are not for a mixture pass through.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.loras, self.dispatcher, _ = serving()
        self.bases = (self.loras.library.base, "base")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"], scope["method"]) == LISTED:
            await self.app(scope, receive, self._listing(send))
            return
        if scope["type"] != "http" or scope["path"] not in ASKED:
            await self.app(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:  # the client has gone
            return
        with ExitStack() as answered:
            try:
                request = _read(body)
                mixture = await asyncio.to_thread(self._mixture, request)
                if mixture is not None:
                    await asyncio.to_thread(answered.enter_context, self.loras.hold(mixture))
                    rest = {name: value for name, value in request.items() if name != "mixture"}
                    body = _written(rest | {"model": mixture_name(mixture) or None})  # None is the base
            except (UserError, RecursionError) as error:
                nested = isinstance(error, RecursionError)
                await _refuse(send, "the request is nested too deep" if nested else str(error))
                return
            length = [(b"content-length", str(len(body)).encode())]
            headers = [header for header in scope["headers"] if header[0].lower() not in LENGTHS] + length
            await self.app({**scope, "headers": headers}, _again(body, receive), send)

    def _listing(self, send: Send) -> Send:
        """`send` for vLLM's list of models, to which it adds `auto` and the experts."""
        held: list[Message] = []

        async def listing(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.start" or message.get("more_body"):
                return
            start, body = held[0], b"".join(part.get("body", b"") for part in held[1:])
            listed = _read(body) if start["status"] == 200 else None
            if isinstance(listed, dict) and listed.get("data"):
                first, taken = listed["data"][0], {each["id"] for each in listed["data"]}
                ours = [name for name in (AUTO, *self.loras.library.names) if name not in taken]
                listed["data"] += [{**first, "id": name, "root": name, "parent": first["id"]} for name in ours]
                body = json.dumps(listed).encode()
            length = [(b"content-length", str(len(body)).encode())]
            headers = [header for header in start["headers"] if header[0].lower() not in LENGTHS] + length
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return listing

    def _mixture(self, request: Any) -> Mixture | None:
        """The mixture that a request's model or mixture stands for; None if that is not ours to say."""
        if not isinstance(request, dict) or not is_asked(request, self.loras.library):
            return None
        named = asked_mixture(request, self.loras.library, self.bases)
        return self.dispatcher([_prompt(request)]) if named is None else named


@cache
def check_base(served: str) -> None:
    """Raises UserError if the base that vLLM serves, a folder or hub id, is not the library's."""
    if served != serving().base:
        serving().loras.library.check_base(load_base(served)[0])


def _read(body: bytes) -> Any:
    """What a body says; None if it is not JSON, which vLLM reports itself."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def _written(request: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(request, allow_nan=False).encode()
    except ValueError as error:
        raise UserError("the request holds NaN or an infinite number, which JSON does not have") from error


def _prompt(request: Mapping[str, Any]) -> str | Chat:
    """What a dispatcher can read of a request: a chat, or one text."""
    asked = request.get("messages", request.get("prompt"))
    try:
        return read_prompt(asked)
    except UserError as error:
        raise UserError(f"the model {AUTO!r} needs messages, or one text as its prompt: {error}") from error


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None if it will never be whole."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` for a request whose body has been read already, and perhaps changed."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again


async def _refuse(send: Send, what: str) -> None:
    """400, in OpenAI's form."""
    error = {"message": what, "type": "BadRequestError", "param": None, "code": 400}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
