"""A server of the tiny base with its library, in a thread, and clients for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx
import pytest
from openai import OpenAI

from experts import ExpertLibrary
from experts.engine import NativeEngine
from experts.engine.continuous import ContinuousBatch
from selfadapt.serving.application import make_application
from selfadapt.serving.running import Server
from selfadapt.serving.served import Served

ENDS = [7, 40, 99]
"""Tokens that end an answer of the tiny base."""


@dataclass
class Running:
    """A server that answers, and what it is made of."""

    served: Served
    server: Server
    url: str

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def engine(self) -> NativeEngine:
        return self.served.engine


@contextmanager
def running(served: Served, *, grace: float = 1.0, **options: Any) -> Iterator[Running]:
    server = Server(make_application(served, **options), served.batch, host="127.0.0.1", port=0, grace=grace)
    with in_a_thread(server) as url:
        yield Running(served, server, url)


@contextmanager
def in_a_thread(server: Server) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def start(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Callable[..., Running]]:
    """Starts a server; `rows`, `waiting` and `tokens` are the batch's, other options the application's."""
    with ExitStack() as servers:

        def start(
            *,
            rows: int = 8,
            waiting: int = 64,
            tokens: int | None = None,
            dispatch: str = "b",
            ends: list[int] | None = None,
            **options: Any,
        ) -> Running:
            tiny_model.generation_config.eos_token_id = ends or ENDS
            engine = NativeEngine(library.load(tiny_model), tiny_tokenizer)
            batch = ContinuousBatch(engine, rows=rows, waiting=waiting, tokens=tokens)
            served = Served(engine, ExpertLibrary.open(library.folder), dispatch, "tiny", batch)
            return servers.enter_context(running(served, **options))

        yield start


@pytest.fixture
def server(start: Callable[..., Running]) -> Running:
    return start()
