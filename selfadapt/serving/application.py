"""The routes of an OpenAI-compatible server on the native engine."""

from __future__ import annotations

import asyncio

import anyio
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from experts.naming import AUTO
from selfadapt.serving.answering import Answering, Answers
from selfadapt.serving.documents import pieces, whole
from selfadapt.serving.errors import RequestError, json_response
from selfadapt.serving.gate import Gate
from selfadapt.serving.metrics import Metrics
from selfadapt.serving.schemas import ChatOptions, CompletionOptions, read_request
from selfadapt.serving.served import Served


def make_application(served: Served, *, api_key: str | None = None, most_bytes: int = 8 << 20) -> FastAPI:
    """The server's application.

    Args:
        api_key: what clients must send; None asks for none.
        most_bytes: the largest body of a request.
    """
    metrics = Metrics()
    answering = Answering(served, metrics)
    app = FastAPI(title="selfadapt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, metrics=metrics, api_key=api_key, most_bytes=most_bytes)
    app.add_exception_handler(RequestError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _not_routed)  # type: ignore[arg-type]

    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok", "queued": served.batch.queued, "running": served.batch.running})

    @app.get("/metrics")
    async def figures() -> Response:
        metrics.queue.set(served.batch.queued)
        metrics.batch.set(served.batch.running)
        return Response(metrics.text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        await asyncio.to_thread(served.refresh)
        return json_response({"object": "list", "data": [_model(name) for name in (AUTO, served.base, *served.names)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        await asyncio.to_thread(served.refresh)
        if name not in (AUTO, *served.bases, *served.names):
            raise RequestError(404, f"there is no model {name[:60]!r}", param="model", code="model_not_found")
        return json_response(_model(name))

    def _model(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": served.since, "owned_by": "selfadapt"}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _answered(request, ChatOptions)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answered(request, CompletionOptions)

    async def _answered(request: Request, kind: type[ChatOptions] | type[CompletionOptions]) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=499)
        options: ChatOptions | CompletionOptions = await asyncio.to_thread(read_request, kind, body)
        answers = await answering.begin(options)
        request.state.noted = answers
        return Streamed(answers) if options.stream else Whole(answers)

    return app


async def _refused(request: Request, error: RequestError) -> Response:
    return error.response


async def _not_routed(request: Request, error: HTTPException) -> Response:
    said = {
        404: f"there is nothing at {request.url.path[:100]}",
        405: f"{request.method} is not allowed at this address",
    }
    return RequestError(error.status_code, said.get(error.status_code, error.detail), headers=error.headers).response


class _WhileConnected(Response):
    """A response that is written for as long as the client stays; then the request is cancelled."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hung_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hung_up)
                await self.write(scope, receive, send)
                tasks.cancel_scope.cancel()
        finally:
            self.answers.request.cancel()

    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class Whole(_WhileConnected):
    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = json_response(await whole(self.answers))
        except RequestError as error:
            response = error.response
        await response(scope, receive, send)


class Streamed(_WhileConnected):
    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in pieces(self.answers):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
