"""What a page tells its reader to do, done: files are written, commands and programs run, in their order."""

from __future__ import annotations

import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from selfadapt.cli import main

ROOT = Path(__file__).parent.parent
blocks = runpy.run_path(str(ROOT / "tests" / "tutorial.py"))["blocks"]  # which `.ci/walk` runs, too
ADDRESS = "http://127.0.0.1:8000"


def run_page(page: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[Any]:
    """What each block of a page in docs/ printed, `.out` and `.err`; programs share their names.

    `selfadapt serve` runs until the page ends, at a port that is free.
    """
    names: dict[str, Any] = {}
    said, address = [], ADDRESS
    with ExitStack() as servers:
        for block in blocks(ROOT / "docs" / page):
            if block.file:
                Path(block.file).parent.mkdir(exist_ok=True)
                Path(block.file).write_text(block.text)
            elif block.language == "python":
                exec(compile(block.text.replace(ADDRESS, address), page, "exec"), names)
            else:
                assert block.language == "sh", f"nobody runs a block of {block.language}"
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line)
                    assert words[0] == "selfadapt", line
                    if words[1] == "serve":
                        address = servers.enter_context(served(words[1:]))
                        continue
                    monkeypatch.setattr(sys, "argv", words)
                    main()
            said.append(capsys.readouterr())
    return said


@contextmanager
def served(args: list[str]) -> Iterator[str]:
    """The address of a server that runs meanwhile and ends as Ctrl-C ends it."""
    command = [sys.executable, "-m", "selfadapt.cli", *args, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next((line for line in process.stderr if line.startswith("serving ")), None)
            assert ready is not None, "the server did not start"
            yield ready.split(" at ")[1].strip().removesuffix("/v1")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
