"""What every request passes through: the check of its key and size, the log and the count."""

from __future__ import annotations

import hmac
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfadapt.serving.errors import RequestError
from selfadapt.serving.metrics import Metrics

logger = logging.getLogger("selfadapt.serving")

OPEN = ("/health",)
"""Paths that need no key."""
ROUTES = ("/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


class Gate:
    """ASGI middleware. The log has one JSON line per request, with nothing of what was asked or answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str | None, most_bytes: int) -> None:
        self.app, self.metrics, self.most_bytes = app, metrics, most_bytes
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # if nothing is sent, the client has gone
        state = scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            if (refusal := self._refusal(scope["path"], headers)) is not None:
                await refusal.response(scope, receive, noted)
            else:
                await self.app(scope, self._bounded(receive), noted)
        except RequestError as error:
            await error.response(scope, receive, noted)
        except Exception as error:
            logger.exception("a request failed")
            if status == 499:
                await RequestError(500, f"the server failed: {type(error).__name__}").response(scope, receive, noted)
        finally:
            self._note(scope, status, time.perf_counter() - start, state.get("noted"))

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._key is not None and path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                said = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
                return RequestError(401, said, code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        return self._too_large() if length.isdigit() and int(length) > self.most_bytes else None

    def _too_large(self) -> RequestError:
        # The connection stays open: closing it with part of the body unread would reset it and lose the refusal.
        return RequestError(413, f"the request is larger than {self.most_bytes} bytes")

    def _bounded(self, receive: Receive) -> Receive:
        came = 0

        async def bounded() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most_bytes:
                raise self._too_large()
            return message

        return bounded

    def _note(self, scope: Scope, status: int, seconds: float, answers: Any) -> None:
        path = scope["path"]
        route = next((each for each in ROUTES if path == each or path.startswith(f"{each}/")), "other")
        self.metrics.requests.labels(route, str(status)).inc()
        line = {"event": "request", "method": scope["method"], "route": route, "status": status}
        line["seconds"] = round(seconds, 4)
        if answers is not None:
            line |= {"model": answers.who, **answers.usage, "stream": bool(answers.options.stream)}
        logger.info(json.dumps(line))
