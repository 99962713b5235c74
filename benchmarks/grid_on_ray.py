"""A grid of twelve small cells on two Ray workers, against one cell after another, with one thread per cell in both.

python benchmarks/grid_on_ray.py [--rounds 1] [--steps 2]

The cells are eleven seeds of `stories` on the built-in base, and the base itself. Each time is for a whole
`selfadapt compare`, including its imports and Ray's start. The figures of both are compared as well: they must be the
same.
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
from selfadapt.grid.results import Line, read_results
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import read_recipe

ALONE, RAY = "one after another", "two workers of Ray"
RECIPE = "smollm2-135m/stories"


def grid(steps: int) -> dict[str, Any]:
    training = {"steps": steps, "prompts_per_step": 2, "validate_every": steps, "validation_size": 8}
    return {
        "domains": {"stories": RECIPE},
        "recipe": {"test_size": 16, "training": training},
        "methods": {"svf": {"seeds": [*range(11)]}},
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

        def compare(which: str, *more: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as output:
                command = [sys.executable, "-m", "selfadapt.cli", "compare", str(folder / "grid.yaml"), *more]
                subprocess.run([*command, "--output", output], env=environment, check=True, capture_output=True)
                lines = read_results(Path(output, "results.jsonl"))
            found[which] = [replace(line, train_seconds=0.0, peak_memory=None) for line in lines]

        side_by_side(
            "twelve cells, one thread a cell",
            {RAY: lambda: compare(RAY, "--on", "ray"), ALONE: lambda: compare(ALONE)},
            against=RAY,
            rounds=options.rounds,
            warmup=0,
        )
    same = found[ALONE] == found[RAY] and len(found[RAY]) == 12
    print(f"the figures are {'the same' if same else 'NOT the same'}, {len(found[RAY])} cells")


if __name__ == "__main__":
    main()
