"""A grid of twelve small trainings on two Ray workers, against one after another, with one thread per cell in both.

python benchmarks/grid_on_ray.py [--rounds 1] [--steps 2]

The cells are twelve seeds of `stories` on the built-in base, and the base itself, which takes seconds. Two independent
jobs (`--cells 1/2` and `--cells 2/2`) show what two processes gain on this machine without Ray. Each time is for whole
commands, including their imports and Ray's start. The figures of all three are compared as well: they must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from peft import get_peft_model
from sidebyside import side_by_side

from selfadapt import load_base
from selfadapt.grid.results import Line, all_results
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import read_recipe

ALONE, JOBS, RAY = "one after another", "two jobs, half of the cells each", "two workers of Ray"
SEEDS = 12
RECIPE = "smollm2-135m/stories"


def grid(steps: int) -> dict[str, Any]:
    training = {"steps": steps, "prompts_per_step": 2, "validate_every": steps, "validation_size": 8}
    return {
        "domains": {"stories": RECIPE},
        "recipe": {"test_size": 16, "training": training},
        "methods": {"svf": {"seeds": [*range(SEEDS)]}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    get_peft_model(load_base()[0], read_recipe(find_recipe(RECIPE)).adapt.config())  # decomposes, once for all
    # Two workers, whatever the machine; by default Ray would lower their priority.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    environment |= {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2})}
    found: dict[str, list[Line]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(yaml.safe_dump(grid(options.steps)), encoding="utf-8")
        command = [sys.executable, "-m", "selfadapt.cli", "compare", str(folder / "grid.yaml")]

        def compare(which: str, *jobs: list[str]) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as output:
                running = [subprocess.Popen([*command, "--output", output, *job], env=environment) for job in jobs]
                codes = [job.wait() for job in running]
                if any(codes):
                    raise SystemExit(f"{which}: a command failed")
                lines = all_results(Path(output, "results.jsonl"))
            found[which] = sorted(
                (replace(line, train_seconds=0.0, peak_memory=None) for line in lines), key=lambda line: line.cell
            )

        side_by_side(
            f"{SEEDS} trainings, one thread a cell",
            {
                RAY: lambda: compare(RAY, ["--on", "ray"]),
                JOBS: lambda: compare(JOBS, ["--cells", "1/2"], ["--cells", "2/2"]),
                ALONE: lambda: compare(ALONE, []),
            },
            against=RAY,
            rounds=options.rounds,
            warmup=0,
        )
    assert len(found[ALONE]) == SEEDS + 1
    for which in (RAY, JOBS):
        other = [line.cell for line in found[ALONE] if line not in found[which]]
        print(f"{which}: {f'other figures for {other}' if other else f'the figures of {ALONE}'}")


if __name__ == "__main__":
    main()
