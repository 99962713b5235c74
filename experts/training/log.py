"""The record of a run: what the model card, the curve, the choice of the best expert and a resumed run rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experts.outside.files import atomic_file
from experts.training.statistics import Accuracy


class Log:
    """`training_log.jsonl`: one line a step and one a validation; ids and numbers, never the text of a data set."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")  # a run may be killed while it writes a line
        return [json.loads(line) for line in lines]

    def validations(self) -> dict[int, Accuracy]:
        """Step → accuracy on the validation split."""
        return {e["step"]: Accuracy(e["right"], e["n"]) for e in self.entries() if "right" in e}

    def forget_after(self, step: int) -> None:
        """Drops what an interrupted run did beyond its last checkpoint; it will be done again, identically."""
        kept = [json.dumps(entry) + "\n" for entry in self.entries() if entry["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def best_step(validations: Mapping[int, Accuracy]) -> int:
    """The step with the highest validation accuracy, the earliest of equals. The untrained step 0 does not count."""
    return max((step for step in validations if step), key=lambda step: (validations[step].value, -step))


def out_of_patience(validations: Mapping[int, Accuracy], patience: int | None) -> bool:
    """Whether the last `patience` validations have brought no new best."""
    if patience is None or max(validations, default=0) == 0:
        return False
    return sum(step > best_step(validations) for step in validations) >= patience
