"""The verbs of the command line, one file each. Heavy modules are imported when a verb runs, not when it is listed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


def show(document: Any, as_json: bool, text: str) -> None:
    """Prints one JSON document, or the text for a person, to stdout.

    Numbers that are not finite become null: JSON has none.
    """
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(_finite(document), indent=2, ensure_ascii=plain, allow_nan=False) if as_json else text)


def check_output(output: Path) -> None:
    """Raises UserError if a verb's output is there already, or cannot be written; makes the folder around it."""
    from experts.outside.errors import UserError
    from experts.outside.files import check_writable

    if output.exists():
        raise UserError(f"{output} exists already; choose another --output, or remove it first")
    check_writable(output.parent)


def check_plot(path: Path) -> None:
    """Raises UserError if a plot cannot be written there as a new PNG file; makes the folder around it."""
    from experts.outside.errors import UserError
    from experts.outside.files import check_writable

    if path.suffix.lower() != ".png":
        raise UserError(f"a plot is a PNG file, and {str(path)!r} does not end in .png; choose another path")
    if path.exists():
        raise UserError(f"{path} exists already; choose another path for the plot, or remove it first")
    check_writable(path.parent)


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
