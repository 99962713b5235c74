"""The server itself: uvicorn, which ends open streams when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Unpack

import uvicorn
from starlette.types import ASGIApp

from experts.engine.continuous import ContinuousBatch
from experts.outside.errors import UserError
from selfadapt.base_models import BaseOptions
from selfadapt.serving.application import make_application
from selfadapt.serving.gate import logger as requests_logger
from selfadapt.serving.served import Served, load_served

GRACE = 5.0
"""Seconds that answers have to finish when the server is told to stop."""


class Application(NamedTuple):
    """What a server serves at its address."""

    app: ASGIApp
    ending: Callable[[], object] = lambda: None
    """Called when all answers have ended, to close what would stay open."""


class Server(uvicorn.Server):
    """When told to stop, it takes no more requests, gives open ones a little time, and ends what is left."""

    def __init__(
        self,
        app: ASGIApp,
        batch: ContinuousBatch,
        *,
        host: str,
        port: int,
        grace: float = GRACE,
        ending: Callable[[], object] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(2 * grace) + 2),
        )
        super().__init__(config)
        self.batch, self.grace, self.ending = batch, grace, ending

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(None if sockets is None else [*sockets])
        if self.force_exit:  # by a second Ctrl-C: uvicorn would cut the application off, which ends in a traceback
            await self.lifespan.shutdown()
        await ending

    async def _end_answers(self) -> None:
        loop = asyncio.get_running_loop()
        patience = loop.time() + self.grace
        while (self.batch.running or self.batch.queued) and loop.time() < patience and not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.batch.close, self.grace)
        self.ending()


def run_native(
    model: str | None,
    library: str | Path | None,
    dispatch: str | None,
    *,
    host: str,
    port: int,
    api_key: str | None,
    rows: int,
    queue: int,
    most_bytes: int,
    around: Callable[[Served, ASGIApp], Application] = lambda served, app: Application(app),
    **base_options: Unpack[BaseOptions],
) -> None:
    """Serves until it is told to stop; one line per request goes to stderr.

    Args:
        around: adds what else is served at the address.

    Raises:
        UserError: if the address is taken, or as `load_served` does.
    """
    listening = _listen(host, port)  # before a base is loaded
    served = load_served(model, library, dispatch, rows=rows, waiting=queue, **base_options)
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(message)s"))
    requests_logger.addHandler(lines)
    requests_logger.setLevel(logging.INFO)
    requests_logger.propagate = False
    application = around(served, make_application(served, api_key=api_key, most_bytes=most_bytes))
    names = ", ".join(["auto", served.base, *served.names])
    _run(application, served, listening, host, f"serving {names} at {{url}}/v1")


def run_page(
    model: str | None,
    library: str | Path | None,
    dispatch: str | None,
    *,
    host: str,
    port: int,
    rows: int,
    queue: int,
    page: Callable[[Served], Application],
    **base_options: Unpack[BaseOptions],
) -> None:
    """Serves the page alone until it is told to stop.

    Raises:
        UserError: if the address is taken, or as `load_served` does.
    """
    listening = _listen(host, port)
    served = load_served(model, library, dispatch, rows=rows, waiting=queue, **base_options)
    _run(page(served), served, listening, host, "play at {url}")


def _run(application: Application, served: Served, listening: socket.socket, host: str, said: str) -> None:
    port = listening.getsockname()[1]
    listening.listen()  # a reader of the line may connect at once, and waits until the server has begun
    print(said.format(url=f"http://{host}:{port}"), file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # which has stopped it already
        Server(application.app, served.batch, host=host, port=port, ending=application.ending).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; raises UserError if it cannot be bound."""
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
    return listening
