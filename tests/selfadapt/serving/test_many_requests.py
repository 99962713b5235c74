"""Many requests, one in ten of them malformed, abandoned or absurd: the others are answered as if they were alone."""

from __future__ import annotations

import itertools
import json
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from experts.engine import Sampling
from experts.mixture import Mixture
from tests.selfadapt.serving.conftest import Running
from tests.selfadapt.serving.test_application import MISTAKES, until

PATH = "/v1/chat/completions"
PROMPTS = ["Which animal barks?", "x", "Add 3 and 4. " * 12]
WHO: dict[str, dict[str, float]] = {
    "tiny": {},
    "a": {"a": 1.0},
    "auto": {"b": 1.0},
    "mix:a=0.25,b=0.5": {"a": 0.25, "b": 0.5},
}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1, "top_p": 0.7, "seed": 9},
]
USUAL = list(itertools.product(PROMPTS, WHO, SAMPLINGS, (1, 17)))


def body(prompt: str, who: str, sampling: dict[str, Any], new: int) -> dict[str, Any]:
    return {"model": who, "messages": [{"role": "user", "content": prompt}], "max_tokens": new, **sampling}


def alone(server: Running) -> dict[int, str]:
    """The answers of the library itself to all usual requests, each asked by itself."""
    return {
        number: server.engine.generate(
            [prompt], max_new_tokens=new, mixture=Mixture.of(WHO[who]), sampling=Sampling(**sampling)
        )[0]
        for number, (prompt, who, sampling, new) in enumerate(USUAL)
    }


def ask(client: httpx.Client, number: int, stream: bool) -> str:
    asked = body(*USUAL[number]) | {"stream": stream}
    while True:
        if not stream:
            response = client.post(PATH, json=asked)
            if response.status_code == 429:
                continue
            assert response.status_code == 200, response.text
            return str(response.json()["choices"][0]["message"]["content"])
        with client.stream("POST", PATH, json=asked) as response:
            if response.status_code == 429:
                continue
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def misbehave(client: httpx.Client, draw: random.Random, large: int) -> None:
    kind = draw.randrange(5)
    if kind == 0:
        given, status, _ = draw.choice(MISTAKES)
        content = given.encode("latin-1") if isinstance(given, str) else json.dumps(given).encode()
        assert client.post(PATH, content=content).status_code in (status, 429)
    elif kind == 1:  # hangs up in mid-stream
        with client.stream(
            "POST", PATH, json=body(*draw.choice(USUAL)) | {"stream": True, "max_tokens": 300}
        ) as response:
            next(response.iter_bytes(), None)
    elif kind == 2:
        assert client.post(PATH, content=b"x" * (large + 1)).status_code == 413
    else:
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address) as raw:
            asked = json.dumps(body(*draw.choice(USUAL)) | {"stream": True, "max_tokens": 300}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(asked)
            if kind == 3:  # goes before all is said
                raw.sendall(head + asked[: len(asked) // 2])
            else:  # asks, and reads a byte or two
                raw.sendall(head + asked)
                raw.recv(2)


def answer_many(server: Running, count: int, large: int) -> None:
    wanted, draw = alone(server), random.Random(0)
    usual = [(draw.randrange(len(USUAL)), draw.random() < 0.5) for _ in range(count)]
    with server.http as client, ThreadPoolExecutor(16) as pool:
        answers = []
        for place, (number, stream) in enumerate(usual):
            answers.append((number, pool.submit(ask, client, number, stream)))
            if place % 9 == 0:
                answers.append((-1, pool.submit(misbehave, client, random.Random(place), large)))
        others = [(number, said) for number, answer in answers if (said := answer.result()) != wanted.get(number)]
        # Where two tokens are equally likely but for rounding, which of them comes depends on the batch.
        assert len(others) <= count / 200, others
        until(lambda: server.served.batch.running == server.served.batch.queued == 0)
        assert client.get("/health").status_code == 200


@pytest.mark.long
def test_many_requests(start: Callable[..., Running]) -> None:
    answer_many(start(most_bytes=100_000, waiting=64), 150, 100_000)


@pytest.mark.slow
def test_a_thousand_requests_leave_nothing_behind(start: Callable[..., Running]) -> None:
    server = start(most_bytes=100_000, waiting=64)
    answer_many(server, 200, 100_000)
    before = psutil.Process().memory_info().rss
    answer_many(server, 1000, 100_000)
    assert psutil.Process().memory_info().rss - before < 100 << 20
