"""Writes the training questions of the benchmarks in benchmarks/tasks as tasks, which `t2l train` can learn from.

cd $SELFADAPT_DATA; python …/benchmarks/benchmark_tasks.py FOLDER [--instances 800] [--skip 500]

An adapter that was trained on a benchmark's own questions is what one written from its description is compared with.
Some benchmarks are judged by the first questions of their training split here; so the first ones are skipped.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task

from experts.outside.reading import read_objects
from selfadapt.harness.tasks import load_tasks

TASKS = Path(__file__).with_name("tasks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instances", type=int, default=800)
    parser.add_argument("--skip", type=int, default=500)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    with (options.folder / "tasks.jsonl").open("w") as tasks, (options.folder / "test.jsonl").open("w") as rows:
        for benchmark in load_tasks([path.stem for path in sorted(TASKS.glob("*.yaml"))], TASKS)[1]:
            assert isinstance(benchmark, Task)  # and no group
            name = str(benchmark.task_name)
            tasks.write(json.dumps({"task": name, "split": "test", "Definition": f"Questions of {name}."}) + "\n")
            (file,) = Path(name).glob("train*.jsonl*")
            documents = [row for _, _, row in islice(read_objects(file), options.skip, None)]
            for document in random.Random(0).sample(documents, min(options.instances, len(documents))):
                question, answer = pair(benchmark, document)
                rows.write(json.dumps({"task": name, "input": question, "output": [answer]}) + "\n")


def pair(benchmark: Any, document: dict[str, object]) -> tuple[str, str]:
    """The question and its right answer as lm-eval shows them."""
    question, target = benchmark.doc_to_text(document), benchmark.doc_to_target(document)
    choices = benchmark.doc_to_choice(document)
    if benchmark.multiple_input:  # as in Winogrande: several questions, with one answer for all
        return choices[question], target
    return question, choices[int(target)]


if __name__ == "__main__":
    main()
