"""`accelerate launch` with two processes on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_two_processes_train_one_expert(recipe: Path, tmp_path: Path) -> None:
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, *launch.split(), "--dynamo_backend", "no", "--module", "selfadapt.cli", "train"]
    result = subprocess.run(
        [*command, str(recipe), "--output", str(tmp_path / "expert"), "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)  # printed once, by the first process
    assert report["n"] == 4
    entries = [json.loads(line) for line in (tmp_path / "expert" / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "reward" in entry] == [1, 2]
    assert [entry["n"] for entry in entries if "right" in entry] == [4, 4, 4]
    assert not (tmp_path / "expert.unfinished").exists()
