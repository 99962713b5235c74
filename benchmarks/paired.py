"""The difference between two methods in a results file on the same items, in points, with its normal 95 % interval.

python benchmarks/paired.py docs/results/paper/results.jsonl arc_easy svf-reinforce lora-reinforce

There is one seed each: the interval is over other items, and says nothing about other seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from experts.outside.reading import read_objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("domain")
    parser.add_argument("methods", nargs=2)
    options = parser.parse_args()
    rows = [row for _, _, row in read_objects(options.results) if row["evaluated_on"] == options.domain]
    right = {row["method"]: np.array([*row["scores"]], dtype=float) for row in rows}  # [n] of each
    first, second = (right[name] for name in options.methods)
    points = 100 * (first - second)
    error = 1.96 * points.std(ddof=1) / len(points) ** 0.5
    mean = points.mean()
    print(f"{' - '.join(options.methods)}: {mean:+.1f} ({mean - error:.1f} to {mean + error:.1f}), n = {len(points)}")


if __name__ == "__main__":
    main()
