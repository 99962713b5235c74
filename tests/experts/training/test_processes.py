"""`accelerate launch` with two processes on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml


def test_two_processes_train_one_expert(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = {
        "model": str(tiny_folder),
        "domain": {
            "kind": "reasoning_gym",
            "name": "numbers",
            "description": "Sums.",
            "dataset": "chain_sum",
            "answer_in": "last_number",
            "train_size": 32,
        },
        "training": {
            "learning_rate": 0.05,
            "steps": 2,
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "max_new_tokens": 4,
            "validate_every": 1,
            "validation_size": 5,
        },
        "test_size": 5,
    }
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump(recipe))
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, *launch.split(), "--dynamo_backend", "no", "--module", "selfadapt.cli", "train"]
    result = subprocess.run(
        [*command, str(tmp_path / "numbers.yaml"), "--output", str(tmp_path / "expert"), "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)  # printed once, by the first process
    assert report["n"] == 5
    entries = [json.loads(line) for line in (tmp_path / "expert" / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "reward" in entry] == [1, 2]
    assert [entry["n"] for entry in entries if "right" in entry] == [5, 5, 5]
    assert not (tmp_path / "expert.unfinished").exists()
