"""Whatever writes may be killed at any moment: nothing is left half written, and going on ends in the same files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from experts.expert import Expert

TASKS = ["a", "b", "c"]


def killed(work: str, folder: Path, kills: int) -> dict[str, int]:
    """How often the work was killed, and came to its end."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"{work}: SEED={seed} makes the same moments")  # shown where the test fails
    script = Path(__file__).with_name("kills.py")
    result = subprocess.run(
        [sys.executable, script, work, folder, str(seed), str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "SELFADAPT_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["killed"] == kills
    return counts


@pytest.mark.slow
def test_training_that_is_killed_ends_in_the_same_expert(recipe: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(recipe.read_text())
    document["training"] |= {"steps": 6, "validate_every": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    killed("train", tmp_path, kills=20)


@pytest.mark.slow
def test_a_network_whose_training_is_killed_ends_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"task": task, "split": "train", "Definition": [f"Write {task}"]} for task in TASKS]
    (tasks / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    instances = [
        {"task": task, "id": f"{task}{i}", "input": f"input {i}", "output": [task]} for task in TASKS for i in range(4)
    ]
    (tasks / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instances))
    document: dict[str, Any] = {
        "model": str(tiny_folder),
        "encoder": "base",
        "output": {"kind": "lora", "rank": 2},
        "data": {"path": str(tasks), "validation_tasks": 1},
        "training": {"kind": "supervised", "steps": 6, "tasks_per_step": 2, "validate_every": 2, "learning_rate": 0.01},
        "network": {"latent_size": 16, "head_size": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    killed("t2l", tmp_path, kills=15)


@pytest.mark.slow
def test_a_library_that_grows_is_whole_at_any_moment(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    z = {f"model.layers.{layer}.mlp.up_proj": torch.rand(32) for layer in range(2)}
    Expert(z, "tiny", "0123456789abcdef", "Sums.").write(tmp_path / "expert")
    killed("library", tmp_path, kills=25)


@pytest.mark.slow
def test_the_cache_of_decompositions_holds_whole_ones_alone(tmp_path: Path) -> None:
    killed("decomposition", tmp_path, kills=25)


@pytest.mark.slow
def test_a_grid_that_is_killed_ends_in_the_same_results(recipe: Path, tmp_path: Path) -> None:
    numbers = yaml.safe_load(recipe.read_text())
    numbers["training"] |= {"steps": 2, "validate_every": 1}
    document = {
        "domains": {"numbers": numbers},
        "methods": {
            "svf": {"training": {"learning_rate": 0.05}},
            "lora": {"adapt": {"method": "lora", "rank": 2}, "training": {"learning_rate": 0.01}},
        },
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(document))
    killed("grid", tmp_path, kills=15)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_ends_in_the_same_scores(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(tiny_folder)
    (tmp_path / "tasks").mkdir()
    rows = [{"task": task, "split": "test", "Definition": [f"Write {task}"]} for task in TASKS]
    (tmp_path / "tasks" / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    instances = [
        {"task": task, "id": f"{task}{i}", "input": f"{i}", "output": [task]} for task in TASKS for i in (0, 1)
    ]
    (tmp_path / "tasks" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instances))
    killed("evaluate", tmp_path, kills=15)
