"""What tyro makes of a command line, with what is wrong in it said in one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def parsed(parse: Callable[[], T]) -> T:
    """`parse()`, which calls tyro; raises SystemExit with code 2 for wrong usage, as tyro does."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as exit:
        if exit.code:
            print(f"error: {_one_line(said.getvalue())}", file=sys.stderr)
        raise


def check_batch_size(name: str, value: Any) -> None:
    """Raises UserError for what lm-eval would not understand: it takes a number, "auto", or "auto:4"."""
    from experts.outside.errors import UserError

    known = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not known and not re.fullmatch(r"0*[1-9][0-9]*|auto(:0*[1-9][0-9]*)?", str(value), re.ASCII):
        raise UserError(f'{name} must be a whole number of 1 or more, or "auto", not {value!r}')


def _one_line(box: str) -> str:
    """The text in tyro's box, which is drawn with ASCII where the terminal knows no more, without its title."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines() or [""]
    lines = [
        re.sub(r"^[│|] *| *[│|]$", "", line).strip() for line in lines if not re.fullmatch(r"[│|╭╮╰╯─├┤+ -]*", line)
    ]
    text = " ".join(line for line in lines if line.strip("─-"))
    return re.sub(r"(?: Argument helptext:.*)? For full helptext, (?:run|see):? (.+)$", r"; see \1", text)
