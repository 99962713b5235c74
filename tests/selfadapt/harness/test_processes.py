"""`selfadapt eval` over two processes of `torchrun`, which talk over gloo: the figures of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experts import ExpertLibrary

TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2 -m selfadapt.cli eval"


@pytest.mark.long
def test_two_processes_give_the_figures_of_one(
    run: Any, library: ExpertLibrary, task_folder: Path, tmp_path: Path
) -> None:
    # Of five documents one process has three; the first must know the mixtures that the other has seen.
    tasks = ("--tasks", "choice,writing,reading", "--include-path", task_folder, "--limit", 5, "--batch-size", 2)
    of_experts = ("--library", library.folder, "--dispatch", "prompt", "--log-samples", "--json")
    command = [sys.executable, *TORCHRUN.split(), *tasks, *of_experts, "--output-path", tmp_path / "out"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)  # printed once
    assert len([*(tmp_path / "out").glob("*/results*")]) == 1

    code, out, err = run("eval", *tasks, *of_experts)
    assert code == 0, err
    one = json.loads(out)
    assert two["n-samples"] == one["n-samples"]
    assert two["results"].keys() == one["results"].keys() == {"choice", "writing", "reading"}
    for name, figures in one["results"].items():
        assert two["results"][name] == pytest.approx(figures, abs=1e-4), name
    assert two["mixture"]["weights"] == pytest.approx(one["mixture"]["weights"], abs=1e-5)
    for name, samples in one["samples"].items():
        (log,) = (tmp_path / "out").glob(f"*/samples_{name}_*.jsonl")
        for text, theirs in zip(log.read_text().splitlines(), samples, strict=True):
            ours = json.loads(text)
            assert ours["doc_id"] == theirs["doc_id"]
            assert ours["mixture"] == pytest.approx(theirs["mixture"], abs=1e-5)
            if name == "writing":
                assert ours["resps"] == theirs["resps"]


@pytest.mark.long
def test_more_processes_than_documents_are_one_line(library: ExpertLibrary, task_folder: Path) -> None:
    tasks = ("--tasks", "choice", "--include-path", task_folder, "--limit", 1, "--library", library.folder)
    command = [sys.executable, *TORCHRUN.split(), *tasks]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode != 0
    assert "error: the task 'choice' has 1 documents for 2 processes; start fewer processes" in result.stderr
