"""What two networks write, on the same instances: the second's scores less the first's, for each method in both files.

python benchmarks/two_networks.py FIRST.jsonl SECOND.jsonl

The files are those of `t2l evaluate --output`. Tasks are the units, as there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from experts.outside.reading import read_objects
from experts.training.statistics import mean_is_zero, over_tasks

Scores = dict[str, dict[tuple[str, str], dict[str, float]]]
"""Method → (task, instance) → its scores."""


def read(path: Path) -> Scores:
    scores: Scores = defaultdict(dict)
    for _, _, row in read_objects(path):
        scores[row["method"]] |= {(each["task"], each["id"]): each for each in row["scores"]}
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs=2)
    first, second = map(read, parser.parse_args().files)
    for method in [method for method in first if method in second]:
        both = first[method].keys() & second[method].keys()
        for metric in ("loss", "rouge"):
            differences = defaultdict(list)
            for task, instance in sorted(both):
                one, other = (scores[method][task, instance][metric] for scores in (first, second))
                differences[task].append(other - one)
            means = [sum(own) / len(own) for own in differences.values()]
            print(
                f"{method}: {metric} {over_tasks(differences)}, p = {mean_is_zero(means):.2g}, n = {len(means)} tasks"
            )


if __name__ == "__main__":
    main()
