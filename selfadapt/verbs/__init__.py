"""The verbs of the command line, one file each. What is heavy is imported when a verb runs, not when it is listed."""

from __future__ import annotations

import json
from typing import Any


def show(document: Any, as_json: bool, text: str) -> None:
    """Prints one JSON document, or the text for a person, to stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text)
