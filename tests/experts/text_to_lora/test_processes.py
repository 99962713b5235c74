"""`torchrun` with two processes, which share out a step's tasks and learn what one alone does."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

LAUNCH = "-m torch.distributed.run --standalone --nproc_per_node 2"


@pytest.mark.long
def test_two_processes_share_out_the_tasks_of_a_step(
    tiny_model: Any, tiny_tokenizer: Any, tiny_folder: Path, encoder: Any, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, *LAUNCH.split(), script, tmp_path, tiny_folder]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    worker = runpy.run_path(str(script))
    steps, together = worker["OPTIONS"].steps, worker["OPTIONS"].tasks_per_step
    counts = [json.loads((tmp_path / f"tasks-{rank}.json").read_text()) for rank in range(2)]
    assert [sum(own) for own in counts] == [together // 2 * steps] * 2
    assert counts[0] != counts[1]  # not the same passes

    alone, network = worker["train"](tiny_model, tiny_tokenizer, encoder, tmp_path / "alone")
    assert alone == [together] * steps
    for rank in range(2):
        trained_by_two = load_file(tmp_path / f"network-{rank}.safetensors")
        for name, parameter in network.items():
            torch.testing.assert_close(trained_by_two[name], parameter, atol=1e-4, rtol=0)
