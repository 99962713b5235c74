"""Clients of `selfadapt serve`, each under its own mixture, against one client at a time and against the plain base.

python benchmarks/serving.py [--clients 16] [--requests 32] [--new-tokens 64] [--rounds 3] [--every 0]

One server answers all, in turns. Tokens a second over all answers, and a second of the server's processors, which what
else runs on the machine changes less; seconds to the first token and between tokens as a client sees them. With
`--every S` requests arrive at random, S seconds apart in the mean.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

EXPERTS = ("stories", "groups", "relations", "sums")
ABOUT = ["a fox", "the sea", "winter", "an old clock", "bread", "a lighthouse", "two brothers", "the moon"]


@dataclass
class Turn:
    """What one way to ask has measured in one round."""

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
    options = parser.parse_args()
    draw = random.Random(0)
    mixtures = []
    for _ in range(options.clients):
        weights = {name: draw.random() / len(EXPERTS) for name in EXPERTS}
        mixtures.append("mix:" + ",".join(f"{name}={weight:.3f}" for name, weight in weights.items()))
    with subprocess.Popen(
        [sys.executable, "-m", "selfadapt.cli", "serve", "--model", "smollm2-135m", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            address = next(line.split(" at ")[1].strip() for line in server.stderr if line.startswith("serving "))
            asyncio.run(compare(address, psutil.Process(server.pid), mixtures, options))
        finally:
            server.terminate()


async def compare(address: str, server: psutil.Process, mixtures: list[str], options: argparse.Namespace) -> None:
    ways = {
        f"{options.clients} clients, as many mixtures": (options.clients, mixtures),
        f"{options.clients} clients, plain base": (options.clients, ["base"]),
        "one client at a time, as many mixtures": (1, mixtures),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    async with httpx.AsyncClient(base_url=address, timeout=None) as client:
        for number in range(options.rounds + 1):  # the first warms up
            for name, (at_once, models) in ways.items():
                # To warm up, and alone, fewer are enough.
                count = 2 if number == 0 else options.requests if at_once > 1 else options.requests // 8
                every = options.every if at_once > 1 else 0.0
                before = sum(server.cpu_times()[:2])
                turn = await ask_all(client, models, count, at_once, options.new_tokens, every)
                turn.processor = sum(server.cpu_times()[:2]) - before
                if number:
                    turns[name].append(turn)
    speeds = {
        "a second": {name: [turn.tokens / turn.seconds for turn in own] for name, own in turns.items()},
        "a processor's second": {name: [turn.tokens / turn.processor for turn in own] for name, own in turns.items()},
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


async def ask_all(
    client: httpx.AsyncClient, models: list[str], count: int, at_once: int, new_tokens: int, every: float
) -> Turn:
    turn, places, start = Turn(), asyncio.Semaphore(at_once), time.perf_counter()
    draw = random.Random(1)
    arrivals = np.cumsum([draw.expovariate(1 / every) if every else 0.0 for _ in range(count)])

    async def ask(number: int) -> None:
        await asyncio.sleep(max(0.0, start + arrivals[number] - time.perf_counter()))
        async with places:
            said = f"Tell a long story about {ABOUT[number % len(ABOUT)]} and the number {number}."
            body = {
                "model": models[number % len(models)],
                "messages": [{"role": "user", "content": said}],
                "max_tokens": new_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            asked, last = time.perf_counter(), 0.0
            async with client.stream("POST", "/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    now = time.perf_counter()
                    if '"content": "' in line and '"content": ""' not in line:
                        (turn.between if last else turn.first).append(now - (last or asked))
                        last = now
                    if '"completion_tokens": ' in line:
                        turn.tokens += int(line.split('"completion_tokens": ')[1].split(",")[0])

    await asyncio.gather(*(ask(number) for number in range(count)))
    turn.seconds = time.perf_counter() - start
    return turn


if __name__ == "__main__":
    main()
