"""A command that writes a report into a folder of the user's replaces only what it wrote there itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experts.outside.errors import UserError
from experts.outside.reading import read_json

REPORT = "report.json"
"""The file by which a report is known."""


def has_report(folder: Path, keys: Iterable[str]) -> bool:
    """Whether there is an earlier report of a command, which has these keys."""
    try:
        document = read_json(folder / REPORT)
    except (UserError, OSError):
        return False
    return isinstance(document, dict) and set(keys) <= document.keys()


def check_replaceable(folder: Path, names: Iterable[str], keys: Iterable[str]) -> None:
    """Raises UserError if one of these files is there, but no earlier report, which has these keys."""
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not has_report(folder, keys):
        raise not_ours(there[0])


def not_ours(path: Path) -> UserError:
    """The error for something that would be replaced and is not the command's own."""
    return UserError(f"{path} exists already, and this command did not write it; choose another --output")
