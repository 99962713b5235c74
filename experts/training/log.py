"""The record of a run: what the model card, the curve, the choice of the best step and a resumed run rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experts.outside.files import atomic_file
from experts.training.statistics import Accuracy

Figure = Accuracy | float
"""What a validation measures: a share of right answers, or a loss."""


class Log:
    """`training_log.jsonl`: one line a step and one a validation; ids and numbers, never the text of a data set."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def append_validation(self, step: int, figure: Figure) -> None:
        if isinstance(figure, Accuracy):
            self.append(step=step, right=figure.right, n=figure.n)
        else:
            self.append(step=step, validation_loss=figure)

    def entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")  # a run may be killed while it writes a line
        return [json.loads(line) for line in lines]

    def accuracies(self) -> dict[int, Accuracy]:
        """Step → accuracy on the validation split."""
        return {e["step"]: Accuracy(e["right"], e["n"]) for e in self.entries() if "right" in e}

    def validations(self) -> dict[int, Figure]:
        """Step → what its validation measured."""
        losses = {e["step"]: e["validation_loss"] for e in self.entries() if "validation_loss" in e}
        return {**self.accuracies(), **losses}

    def seconds(self) -> float:
        """What the steps took, without the validations between them."""
        return sum(entry.get("seconds", 0.0) for entry in self.entries())

    def forget_after(self, step: int) -> None:
        """Drops what an interrupted run did beyond its last checkpoint; it will be done again, identically."""
        kept = [json.dumps(entry) + "\n" for entry in self.entries() if entry["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
