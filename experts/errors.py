"""Mistakes a user can make and mend: one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
