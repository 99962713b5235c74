"""`selfadapt demo`."""

from __future__ import annotations

from pathlib import Path

from selfadapt.verbs import show


def demo(output: Path = Path("runs/demo"), json: bool = False) -> None:
    """Show what the shipped experts do, train one on the built-in base and compare the two; minutes on two cores.

    Args:
        output: the folder for the expert and the report. A demo that was interrupted there goes on.
        json: print the report as JSON.
    """
    from selfadapt.demo import demo as run

    report = run(output)
    show(report, json, str(output / "report.md"))
