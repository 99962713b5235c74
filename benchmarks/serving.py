"""Clients of `selfadapt serve`, each under its own mixture, against one client at a time and against the plain base.

python benchmarks/serving.py [--clients 16] [--requests 32] [--new-tokens 64] [--rounds 3] [--every 0] [--vllm PYTHON]

One server answers all, in turns. It reports tokens per second over all answers, and per second of the server's
processor time, which depends less on what else runs on the machine; and seconds to the first token and between tokens,
as a client sees them. With `--every S` requests arrive at random, S seconds apart on average. With
`--vllm .venv-vllm/bin/python`, the environment of `make setup-vllm`, `selfadapt serve --engine vllm` answers the same
requests in turns with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

EXPERTS = ("stories", "groups", "relations", "sums")
ABOUT = ["a fox", "the sea", "winter", "an old clock", "bread", "a lighthouse", "two brothers", "the moon"]


VLLM = ("--engine", "vllm", "--vllm-options", "max-model-len", "1024", "max-loras", "16")
CORES = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}  # or vLLM leaves one of them idle


class Way(NamedTuple):
    """How a server is asked."""

    name: str
    at_once: int
    models: Sequence[str]


class Server(NamedTuple):
    """A server and the process that was started for it."""

    url: str
    process: psutil.Process

    @property
    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def processor(self) -> float:
        """Processor seconds that the server's processes have used."""
        return sum(sum(each.cpu_times()[:2]) for each in [self.process, *self.process.children(recursive=True)])


@dataclass
class Turn:
    """What was measured for one way of asking in one round."""

    seconds: float = 0.0
    processor: float = 0.0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--vllm")
    options = parser.parse_args()
    draw = random.Random(0)
    mixtures = []
    for _ in range(options.clients):
        weights = {name: draw.random() / len(EXPERTS) for name in EXPERTS}
        mixtures.append("mix:" + ",".join(f"{name}={weight:.3f}" for name, weight in weights.items()))
    ways = [
        Way(f"{options.clients} clients, as many mixtures", options.clients, mixtures),
        Way(f"{options.clients} clients, plain base", options.clients, ["base"]),
        Way("one client at a time, as many mixtures", 1, mixtures),
    ]
    with ExitStack() as servers:
        native = servers.enter_context(serving(sys.executable))
        asked = [(way, native) for way in ways]
        if options.vllm:
            vllm = servers.enter_context(serving(options.vllm, *VLLM))
            asked += [(way._replace(name=f"vLLM: {way.name}"), vllm) for way in ways]
        asyncio.run(compare(asked, options))


@contextmanager
def serving(python: str, *options: str) -> Iterator[Server]:
    """Starts a server with the shipped experts, and yields it once it answers."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    command = [python, "-m", "selfadapt.cli", "serve", "--model", "smollm2-135m", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=CORES | os.environ) as own:
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(own.pid))
        try:
            while not server.answers:
                if own.poll() is not None:
                    sys.exit(f"the server ended before it answered: {' '.join(command)}")
                time.sleep(0.5)
            yield server
        finally:
            own.terminate()


async def compare(asked: Sequence[tuple[Way, Server]], options: argparse.Namespace) -> None:
    turns: dict[str, list[Turn]] = {way.name: [] for way, _ in asked}
    async with httpx.AsyncClient(timeout=None) as client:
        for number in range(options.rounds + 1):  # the first warms up
            for way, server in asked:
                several = way.at_once > 1
                count = options.requests if several else options.requests // 8
                if number == 0:  # every mixture occurs once
                    count = len(way.models) if several else 1
                before = server.processor
                turn = await ask_all(
                    client, server.url, way, count, options.new_tokens, options.every if several else 0.0
                )
                turn.processor = server.processor - before
                if number:
                    turns[way.name].append(turn)
    speeds = {
        "per second": {name: [turn.tokens / turn.seconds for turn in own] for name, own in turns.items()},
        "per CPU second": {name: [turn.tokens / turn.processor for turn in own] for name, own in turns.items()},
    }
    columns = [*(f"tokens {per}" for per in speeds), "first token p50, p95 (s)", "between tokens p50, p95 (s)"]
    table = Table("", *columns, title=f"medians of {options.rounds} rounds")
    for name, own in turns.items():
        first, between = ([each for turn in own for each in getattr(turn, what)] for what in ("first", "between"))
        shown = [", ".join(f"{np.percentile(values, p):.2f}" for p in (50, 95)) for values in (first, between)]
        table.add_row(name, *(f"{np.median(speed[name]):.1f}" for speed in speeds.values()), *shown)
    console = Console(width=150)
    console.print(table)
    for per, speed in speeds.items():
        ours, *others = speed
        for other in others:
            ratios = [mine / its for mine, its in zip(speed[ours], speed[other], strict=True)]
            console.print(f"tokens {per}: {np.median(ratios):.2f} × {other} ({min(ratios):.2f} to {max(ratios):.2f})")


async def ask_all(client: httpx.AsyncClient, url: str, way: Way, count: int, new_tokens: int, every: float) -> Turn:
    turn, places, start = Turn(), asyncio.Semaphore(way.at_once), time.perf_counter()
    draw = random.Random(1)
    arrivals = np.cumsum([draw.expovariate(1 / every) if every else 0.0 for _ in range(count)])

    async def ask(number: int) -> None:
        await asyncio.sleep(max(0.0, start + arrivals[number] - time.perf_counter()))
        async with places:
            said = f"Tell a long story about {ABOUT[number % len(ABOUT)]} and the number {number}."
            body = {
                "model": way.models[number % len(way.models)],
                "messages": [{"role": "user", "content": said}],
                "max_tokens": new_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            asked, last = time.perf_counter(), 0.0
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    now = time.perf_counter()
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if any(choice["delta"].get("content") for choice in event["choices"]):
                        (turn.between if last else turn.first).append(now - (last or asked))
                        last = now
                    if event.get("usage"):
                        turn.tokens += event["usage"]["completion_tokens"]

    await asyncio.gather(*(ask(number) for number in range(count)))
    turn.seconds = time.perf_counter() - start
    return turn


if __name__ == "__main__":
    main()
