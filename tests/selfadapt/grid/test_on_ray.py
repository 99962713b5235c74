"""Cells on two workers of Ray: the results of one machine, whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from selfadapt.grid.experiment import read_experiment
from selfadapt.grid.results import Line, read_results
from selfadapt.grid.run import run_experiment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (selfadapt[ray])"),
]

DEADLY = """
import os, signal
from dataclasses import dataclass
from datasets import Dataset

@dataclass
class Deadly:
    name: str = "deadly"
    description: str = "Questions that kill who answers them on a worker of Ray."

    def load(self, split):
        rows = [{"id": f"{n}", "prompt": [{"role": "user", "content": f"{n}?"}], "answer": f"{n}"} for n in range(4)]
        return Dataset.from_list(rows)

    def reward(self, completions, **columns):
        with open("/proc/self/cmdline") as title:
            if title.read().startswith("ray::"):
                os.kill(os.getpid(), signal.SIGKILL)
        return [0.0 for _ in completions]
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    command = [sys.executable, "-m", "selfadapt.cli", "compare", tmp_path / "grid.yaml", "--json", "--on", "ray"]
    return [*map(str, command), "--output", str(tmp_path / "out")]


@pytest.fixture
def environment() -> dict[str, str]:
    # Two workers, whatever the machine; and they need not wait for other programs on it.
    return os.environ | {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2}), "RAY_worker_niceness": "0"}


def untimed(lines: list[Line]) -> list[Line]:
    return [replace(line, train_seconds=0.0, peak_memory=None) for line in lines]


def test_a_killed_workers_cell_is_tried_again_to_the_results_of_one_machine(
    recipe: Path, tmp_path: Path, command: list[str], environment: dict[str, str]
) -> None:
    numbers = yaml.safe_load(recipe.read_text())
    numbers["training"].update(steps=40, validate_every=20)
    lora = {"adapt": {"method": "lora", "rank": 2}, "training": {"learning_rate": [0.01, 0.05], "steps": 1}}
    methods: dict[str, Any] = {"svf": {"seeds": [0, 1]}, "lora": {**lora, "seeds": [0, 1]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"domains": {"numbers": numbers}, "methods": methods}))
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = tmp_path / "out" / "cells" / "svf--numbers--lr0.05--seed0.unfinished"
    while not (workers := at_work(job, begun)):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    for worker in workers:
        worker.kill()
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert "svf/numbers/lr0.05/seed0: its worker died; trying it again" in " ".join(err.split())
    assert {row["method"] for row in json.loads(out)["rows"]} == {"base", "svf", "lora"}
    one = run_experiment(read_experiment(tmp_path / "grid.yaml"), tmp_path / "one", resume=False)
    assert untimed(read_results(tmp_path / "out" / "results.jsonl")) == untimed(one)
    assert not [*(tmp_path / "out" / "cells").glob("*.jsonl")]


def at_work(job: subprocess.Popen[str], folder: Path) -> list[psutil.Process]:
    """The worker that is training in the folder, once it has made a step."""
    if not [*folder.glob("checkpoint-*")]:
        return []
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            if any(Path(file.path).parent == folder for file in process.open_files()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_cell_whose_workers_all_die_is_said_and_the_others_go_on(
    recipe: Path, tmp_path: Path, command: list[str], environment: dict[str, str]
) -> None:
    numbers = yaml.safe_load(recipe.read_text())
    (tmp_path / "deadly.py").write_text(DEADLY)
    deadly = {**numbers, "domain": {"kind": "module", "path": str(tmp_path / "deadly.py:Deadly")}}
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump({"domains": {"numbers": numbers, "deadly": deadly}, "methods": {"svf": {}}})
    )
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("its worker died") == 2 * 2  # of a cell that is begun three times
    lines = {line.cell: line for line in read_results(tmp_path / "out" / "results.jsonl")}
    failed = {cell for cell, line in lines.items() if line.error}
    assert failed == {"base/deadly", "svf/deadly/lr0.05/seed0"}
    assert all(lines[cell].error.startswith("WorkerCrashedError: ") for cell in failed)
    assert lines["svf/numbers/lr0.05/seed0"].n == 4
    assert result.stderr.splitlines()[-1].startswith("error: failed: ")
