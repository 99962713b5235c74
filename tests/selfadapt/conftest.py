from __future__ import annotations

import sys
from typing import Any

import pytest

from selfadapt.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("generate", …)` → (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["selfadapt", *map(str, args)])
        capsys.readouterr()  # what fixtures said
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return run
