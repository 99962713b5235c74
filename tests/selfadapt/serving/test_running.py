"""The command: it serves, says so, and ends what is open when it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from experts import ExpertLibrary

CHAT = {"messages": [{"role": "user", "content": "Which animal barks?"}], "model": "auto"}


@pytest.fixture
def process(library: ExpertLibrary) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "selfadapt.cli", "serve", "--library", str(library.folder), "--port", "0"]
    environment = {**os.environ, "SELFADAPT_API_KEY": "secret"}
    with subprocess.Popen(
        [*command, "--dispatch", "a"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.kill()


@pytest.mark.long
def test_the_command_serves_until_it_is_told_to_stop(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("serving "))
    assert said.startswith("serving auto, tiny, a, b at http://127.0.0.1:")
    key = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=said.split(" at ")[1].strip(), headers=key, timeout=60) as client:
        answer: dict[str, Any] = client.post("/chat/completions", json=CHAT | {"max_tokens": 2}).json()
        assert answer["model"] == "mix:a=1"
        with client.stream("POST", "/chat/completions", json=CHAT | {"stream": True, "n": 32}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
    log = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert [(line["route"], line["status"], line["stream"]) for line in log] == [
        ("/v1/chat/completions", 200, False),
        ("/v1/chat/completions", 200, True),
    ]
    assert process.stdout is not None
    assert process.stdout.read() == ""


@pytest.mark.long
def test_a_second_ctrl_c_is_as_quiet(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("serving "))
    key = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=said.split(" at ")[1].strip(), headers=key, timeout=60) as client:
        asked = CHAT | {"stream": True, "n": 32, "max_tokens": 500}
        with client.stream("POST", "/chat/completions", json=asked) as response, suppress(httpx.HTTPError):
            next(response.iter_lines())
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
    rest = process.stderr.read()
    assert process.wait(60) in (0, -signal.SIGINT)
    assert "Traceback" not in rest
