"""The check of one card, run small on a CPU, without the packages that it promises not to need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNNEEDED = ("PIL", "gguf", "lm_eval", "math_verify", "matplotlib", "ray", "reasoning_gym", "scipy", "tyro")
"""Of what this package depends on or has in an extra, what neither torch, transformers, peft, trl nor safetensors
brings."""
RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys({unneeded}))  # an import of None fails
sys.argv = ["gpu.py", *{arguments}]
sys.path.insert(0, "benchmarks")
{before}
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def check(folder: Path, base: Path, *more: str, before: str = "") -> tuple[int, str]:
    arguments = ["--small", "--base", str(base), "--output", str(folder / "gpu.md"), *more]
    code = RUN.format(unneeded=UNNEEDED, arguments=arguments, before=before)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    return result.returncode, (folder / "gpu.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path, tiny_folder: Path) -> None:
    code, page = check(tmp_path, tiny_folder)
    assert code == 0, page
    assert page.count("\n## ") == 8
    assert "failed" not in page
    assert "left out" not in page
    assert "| factors | 18,624 | 18,624 |" in page  # measured, and by arithmetic
    assert "| expert | " in page.split("## Stories")[1]


@pytest.mark.slow
def test_a_part_that_fails_is_said_and_the_others_run(tmp_path: Path) -> None:
    before = "import memory; memory.size = lambda *tensors: 1 / 0"
    code, page = check(tmp_path, tmp_path / "nowhere", before=before)
    assert code == 1
    assert page.count("failed: ZeroDivisionError: division by zero") == 2  # both that measure memory
    assert page.split("## REINFORCE step")[1].count("| 1.00 to 1.00 |") >= 4
    assert f"left out: the built-in base is not in {tmp_path / 'nowhere'}" in page


@pytest.mark.slow
def test_no_part_begins_when_the_time_is_up(tmp_path: Path, tiny_folder: Path) -> None:
    code, page = check(tmp_path, tiny_folder, "--minutes", "0")
    assert (code, page.count("left out: the time is up")) == (0, 8)
