"""`torchrun` with two processes on one machine, which talk over gloo.

`accelerate launch` starts a single process where there is no accelerator, whatever --num_processes says.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from selfadapt import load_base

LAUNCH = "-m torch.distributed.run --standalone --nproc_per_node 2"


def launch(*command: object) -> list[str]:
    return [sys.executable, *LAUNCH.split(), *map(str, command)]


@pytest.mark.parametrize("options", [(), ("--shard-base",)])
@pytest.mark.long
def test_two_processes_train_one_expert(recipe: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    # Five problems and two processes: one of them has to answer one twice.
    sizes = ("--validation-size", "5", "--test-size", "5")
    command = launch("-m", "selfadapt.cli", "train", recipe, "--output", tmp_path / "expert", "--json", *sizes)
    command += options
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)  # printed once, by the first process
    assert report["n"] == 5
    entries = [json.loads(line) for line in (tmp_path / "expert" / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "reward" in entry] == [1, 2]
    assert [entry["n"] for entry in entries if "right" in entry] == [5, 5, 5]
    assert not (tmp_path / "expert.unfinished").exists()


@pytest.mark.long
def test_two_processes_learn_what_one_does(
    tiny_model: Any, tiny_tokenizer: Any, tiny_folder: Path, letters: Any, tmp_path: Path
) -> None:
    """From the same completions or answers the same z; live, where each samples its own, one z that is better."""
    script = Path(__file__).with_name("two_processes.py")
    result = subprocess.run(launch(script, tmp_path, tiny_folder), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["processes"] == 2
    assert facts["broadcast_buffers"] is False  # the factors are constants, and large
    for kind in ("recorded", "answers", "live"):
        for name in (kind, f"sharded-{kind}"):
            first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2))
            assert all(torch.equal(z, second[name]) for name, z in first.items())

    worker = runpy.run_path(str(script))
    base = load_base(str(tiny_folder))[0]
    alone = {
        "recorded": worker["train"](tiny_model, tiny_tokenizer, letters, worker["OPTIONS"], tmp_path, recorded=True),
        "answers": worker["train_on_answers"](base, tiny_tokenizer, letters, tmp_path),
    }
    for kind, trainer in alone.items():
        for together in (kind, f"sharded-{kind}"):
            trained_by_two = load_file(tmp_path / f"{together}-0.safetensors")
            for name, z in worker["vectors"](trainer).items():
                torch.testing.assert_close(z, trained_by_two[name], atol=1e-4, rtol=0)
                assert (z - 1).abs().max() > 0.02

    assert facts["share"] == pytest.approx(0.5, abs=0.01)  # of the base, in each process
    sharded = load_file(tmp_path / "bfloat16-0.safetensors")
    wanted = worker["gradients"](worker["small_expert"](load_base(str(tiny_folder))[0]), worker["IDS"])
    for name, gradient in wanted.items():
        torch.testing.assert_close(sharded[name], gradient, atol=0.05 * float(gradient.abs().max()), rtol=0)

    for rewards in facts["rewards"].values():
        # Four standard errors of a mean over ten steps of 64 samples.
        assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.04


@pytest.mark.long
def test_one_process_has_nothing_to_share_out(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfadapt.cli", "train", recipe, "--output", tmp_path / "expert", "--shard-base"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "there is only one process" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--shard-base",)])
def test_a_run_whose_worker_was_killed_resumes_to_the_same_expert(
    recipe: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    document = yaml.safe_load(recipe.read_text())
    document["training"] |= {"steps": 60, "validate_every": 10, "learning_rate": 0.01}
    recipe.write_text(yaml.safe_dump(document))

    def train(name: str, *more: str) -> subprocess.Popen[bytes]:
        command = launch("-m", "selfadapt.cli", "train", recipe, "--output", tmp_path / name, *options, *more)
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def finish(name: str, *more: str) -> dict[str, torch.Tensor]:
        assert train(name, *more).wait() == 0
        return load_file(tmp_path / name / "adapter_model.safetensors")

    killed = train("killed")
    while not (tmp_path / "killed.unfinished" / "checkpoint-10" / "trainer_state.json").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    *_, worker = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    assert killed.wait() != 0
    assert not (tmp_path / "killed").exists()
    resumed, whole = finish("killed", "--resume"), finish("whole")
    assert all(torch.equal(z, whole[name]) for name, z in resumed.items())


@pytest.mark.long
def test_prompts_that_do_not_divide_are_one_line_before_a_base_is_loaded(recipe: Path, tmp_path: Path) -> None:
    command = launch("-m", "selfadapt.cli", "train", recipe, "--output", tmp_path / "expert", "--prompts-per-step", "3")
    result = subprocess.run([*command, "--model", "no/such-base"], capture_output=True, text=True)
    assert result.returncode != 0
    assert (
        "error: prompts_per_step 3 cannot be divided evenly among 2 processes: choose a multiple of 2" in result.stderr
    )
    assert not list(tmp_path.glob("expert*"))
