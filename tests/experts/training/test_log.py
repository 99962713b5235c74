"""What people see of a run: lines where nobody watches, a bar with the curve and samples in a terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from experts.training.log import Progress


def shown(terminal: bool) -> str:
    progress = Progress("sums")
    progress.console = Console(file=StringIO(), force_terminal=terminal, width=100, color_system=None)
    progress.begin(0, 3)
    for step, accuracy in enumerate((0.0, 0.5, 1.0), 1):
        progress.sampled(f"What is {step}\n+ 1? [/b]", [(f"It is [red]{step}.", 1.0), ("No idea. " * 30, None)])
        entry: dict[str, Any] = {"step": step, "reward": 2 * accuracy - 1, "accuracy": accuracy, "seconds": 1.0}
        progress.stepped(entry)
    progress.end()
    return str(progress.console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [False, True])
def test_samples_stand_below_the_figures_of_their_step(terminal: bool) -> None:
    text = shown(terminal)
    of_last = text[text.rindex("reward +1.00  right 100%") :].replace("\r", "\n").splitlines()
    prompt, right, other = [line.rstrip() for line in of_last if line.startswith("  ")][:3]
    assert prompt == "  What is 3 + 1? [/b]"
    assert right == "  +1.00  It is [red]3."
    assert other.startswith("  none  No idea.")
    assert other.endswith("[...]")
    assert ("▁▅█" in text) == terminal
