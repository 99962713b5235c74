"""Mistakes a user can make and mend: one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake of the caller's, not of the program's. The command line prints it without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do.

    >>> str(unknown("recipe", "sumz", ["sums", "products"]))
    "unknown recipe 'sumz'; did you mean 'sums'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    else:
        hint = ("known: " + ", ".join(known)) if known else "there are none"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def check_numbers(options: Any, *, least: Iterable[tuple[str, float]] = (), positive: Iterable[str] = ()) -> None:
    """Looks at the numbers among `options`; None, where something is not asked for, is right.

    Args:
        least: (name, the smallest value that it may have).
        positive: names of numbers that must be above 0.

    Raises:
        UserError: naming the first that is smaller, NaN or infinite.
    """
    for name, bound in least:
        value = getattr(options, name)
        if value is not None and not bound <= value < math.inf:
            raise UserError(f"{name} must be at least {bound:g}, not {value}")
    for name in positive:
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise UserError(f"{name} must be a positive number, not {value}")


def check_seed(seed: int) -> None:
    """Raises UserError for what NumPy's and PyTorch's generators do not take both."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to 2³² − 1, not {seed}")
