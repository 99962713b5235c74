"""Which methods of a comparison are run: all whose folders are given, or those that are asked for by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experts.outside.errors import UserError

Needs = Mapping[str, str | None]
"""The methods of a comparison in the order of its table → the folder that each needs, such as `network`."""


def split_names(text: str, methods: Iterable[str]) -> list[str]:
    """The names of methods in a list separated by commas, which some of the names hold as well.

    >>> split_names("base,written, random vector", ["base", "written", "written, random vector"])
    ['base', 'written, random vector']
    """
    longest_first = "|".join(map(re.escape, sorted(methods, key=len, reverse=True)))
    return [name.strip() for name in re.findall(rf"(?:^|,)\s*((?:{longest_first})(?=\s*(?:,|$))|[^,]*)", text)]


def choose(needs: Needs, folders: Mapping[str, Path | None], asked: Sequence[str] = ()) -> list[str]:
    """The methods to run, in the order of the table: those that are asked for, by default all that are possible.

    Raises:
        UserError: if there is no such method or folder, or a method needs a folder that is not given.
    """
    for folder in folders.values():
        if folder is not None and not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
    for name in asked:
        if name not in needs:
            raise UserError(f"there is no method {name!r}; the methods are: {'; '.join(needs)}")
        if (need := needs[name]) and folders[need] is None:
            option = "a network" if need == "network" else f"--{need.replace('_', '-')} (in Python {need})"
            raise UserError(f"the method {name!r} needs {option}")
    possible = [name for name, need in needs.items() if need is None or folders[need] is not None]
    return [name for name in possible if not asked or name in asked]


def reference_among(methods: Sequence[str]) -> str:
    """The method that the others are compared with."""
    return "written" if "written" in methods else methods[0]
