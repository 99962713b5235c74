"""Parses a command line with tyro, and says in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def complain(line: str) -> None:
    """Prints what is wrong. Of the processes that `torchrun` started on a machine, which all find it, one does."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)


def parsed(parse: Callable[[], T], verb: str) -> T:
    """`parse()`, which calls tyro; raises SystemExit with code 2 for wrong usage, as tyro does.

    Args:
        verb: what was called, such as `selfadapt train`, whose help a mistake points to.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as exit:
        if exit.code:
            complain(f"error: {_one_line(said.getvalue())}; see {verb} --help")
        raise


def _one_line(box: str) -> str:
    """The text in tyro's box without its title; the box is drawn in ASCII if the terminal knows no more."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines() or [""]
    lines = [
        re.sub(r"^[│|] *| *[│|]$", "", line).strip() for line in lines if not re.fullmatch(r"[│|╭╮╰╯─├┤+ -]*", line)
    ]
    text = " ".join(line for line in lines if line.strip("─-"))
    return re.sub(r"(?: Argument helptext:.*)? For full helptext, (?:run|see):? .+$", "", text).rstrip(".")
