"""`selfadapt import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from experts import Expert
from experts.svf.fingerprint import fingerprint


def test_import_writes_an_expert(run: Any, tiny_folder: Path, tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "policy_params.pt"
    torch.save({f"learnable_params_module_list.{i}": torch.linspace(-1, 1, 32).bfloat16() for i in range(6)}, path)
    args = ("--model", tiny_folder, "--output", tmp_path / "sums")
    code, out, err = run("import", path, *args, "--description", "Sums.", "--json")
    assert code == 0, err
    assert json.loads(out)["parameters"] == 6 * 32
    expert = Expert.read(tmp_path / "sums")
    assert (expert.description, expert.fingerprint) == ("Sums.", fingerprint(tiny_model))
    code, _, err = run("import", path, *args)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "exists already" in err
    code, _, err = run("import", tmp_path / "nothing.pt", "--model", tiny_folder, "--output", tmp_path / "new")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "no such file" in err
