from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experts.outside.files import data_folder

Put = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes invented rows as a file of the data folder, which is empty otherwise, with no hub behind it."""
    folder = tmp_path / "data"
    monkeypatch.setenv("SELFADAPT_DATA", str(folder))

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return path

    return write


@pytest.fixture
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("SELFADAPT_DATA names no folder of data sets")
    return folder
