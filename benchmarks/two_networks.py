"""What two networks write, on the same instances, as `t2l evaluate` compares methods: a table for each method of both.

python benchmarks/two_networks.py FIRST.jsonl SECOND.jsonl

The files are those of `t2l evaluate --output`, and may be compressed by gzip. Differences are the second's scores less
the first's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experts.outside.reading import read_objects
from experts.text_to_lora.evaluation import Compared, Score, paired_estimates

Scores = dict[str, dict[tuple[str, str], Score]]
"""Method → (task, instance) → its scores."""


def read(path: Path) -> Scores:
    scores: Scores = {}
    for _, _, row in read_objects(path):
        of_task = (Score(**score) for score in row["scores"])
        scores.setdefault(row["method"], {}).update({(each.task, each.id): each for each in of_task})
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs=2)
    files = parser.parse_args().files
    first, second = map(read, files)
    for method in [method for method in first if method in second]:
        shared = sorted(first[method].keys() & second[method].keys())
        scores = {
            str(file): [own[method][instance] for instance in shared]
            for file, own in zip(files, (first, second), strict=True)
        }
        reference = str(files[0])
        tasks = len({task for task, _ in shared})
        print(
            f"{method}, n = {tasks} tasks\n{Compared(reference, paired_estimates(scores, reference), scores).table()}\n"
        )


if __name__ == "__main__":
    main()
