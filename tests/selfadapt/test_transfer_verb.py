"""`selfadapt transfer`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experts import Expert
from experts.svf.fingerprint import fingerprint


@pytest.fixture
def expert(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> Path:
    z = {f"model.layers.{i}.mlp.up_proj": torch.linspace(0.5, 1.5, 8) for i in range(2)}
    Expert(z, str(tiny_folder), fingerprint(tiny_model), "Sums.").write(tmp_path / "sums")
    return tmp_path / "sums"


@pytest.fixture
def other(tiny_model: Any, tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    tiny_model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_transfer_writes_and_compares(run: Any, expert: Path, other: Path, tmp_path: Path) -> None:
    code, out, err = run("transfer", expert, "--to", other, "--output", tmp_path / "moved", "--compare", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["from"] != document["to"] == Expert.read(tmp_path / "moved").fingerprint
    first, second = document["matrices"]
    assert first["spectrum"] == pytest.approx(0.1, abs=1e-4)
    assert second["spectrum"] == 0
    assert document["mean"]["aligned"] == pytest.approx(1, abs=1e-4)
    code, out, _ = run("transfer", expert, "--to", other, "--compare")
    header, *rows = out.splitlines()
    assert header.split() == ["matrix", "aligned", "overlap", "chance", "spectrum", "difference"]
    assert [row.split()[0] for row in rows] == [*Expert.read(expert).z, "mean"]


@pytest.fixture
def wider(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    config = copy.deepcopy(tiny_model.config)
    config.intermediate_size = 64
    type(tiny_model)(config).save_pretrained(tmp_path / "wider")
    tiny_tokenizer.save_pretrained(tmp_path / "wider")
    return tmp_path / "wider"


@pytest.mark.usefixtures("expert", "other", "wider")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "moved", "--to", "nowhere/at/all"], "no such folder: nowhere/at/all"),
        (["--to", "tiny"], "nothing to do"),
        (["--to", "tiny", "--output", "moved"], "belongs to this base already"),
        (["--to", "other", "--output", "sums"], "exists already"),
        (["--to", "wider", "--output", "moved"], "up_proj has the shapes [48, 32] and [64, 32]"),
        (["--to", "other", "--output", "moved", "--model", "gone/far/away"], "no such folder: gone/far/away"),
    ],
)
def test_a_mistake_is_one_line(
    run: Any, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("transfer", expert, *args)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
