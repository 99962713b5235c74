"""Mistakes a user can make and mend: one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from collections.abc import Iterable
from typing import Any

SHOWN = 30  # names that do exist
LONGEST = 100  # characters of a value in a message


class UserError(ValueError):
    """A mistake of the caller's, not the program's. The command line prints it without a traceback."""


def short(value: Any) -> str:
    """A value as shown in a message: on one line, shortened if it is long.

    >>> short(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    said = " ".join(reprlib.repr(value).split())
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 1]}…"


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do.

    >>> str(unknown("recipe", "sumz", ["sums", "products"]))
    "unknown recipe 'sumz'; did you mean 'sums'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if near:
        hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    else:
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        hint = f"known: {', '.join(known[:SHOWN])}{more}" if known else "there are none"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def not_installed(what: str, package: str, extra: str) -> UserError:
    """The error for one of our extras that is needed but not installed, with the command that installs it.

    >>> str(not_installed("evaluation", "lm-eval", "eval"))
    "evaluation needs lm-eval, which is not installed: pip install 'selfadapt[eval]'"
    """
    return UserError(f"{what} needs {package}, which is not installed: pip install 'selfadapt[{extra}]'")


def check_numbers(
    options: Any,
    *,
    least: Iterable[tuple[str, float]] = (),
    positive: Iterable[str] = (),
    counts: Iterable[str] = (),
) -> None:
    """Checks the numbers among `options`; None, for something that is not asked for, is allowed.

    Args:
        least: pairs of a name and the smallest value that it may have.
        positive: names of numbers that must be above 0.
        counts: names of numbers from 1 to `COUNTS`.

    Raises:
        UserError: naming the first that is too small, too large, NaN or infinite.
    """
    counts = tuple(counts)
    least = [*least, *((name, 1) for name in counts)]
    for name, bound in least:
        value = getattr(options, name)
        if value is not None and not bound <= value < math.inf:
            finite = "" if math.isfinite(value) else "a finite number, "
            raise UserError(f"{name} must be {finite}at least {bound:g}, not {value}")
    for name in positive:
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise UserError(f"{name} must be a positive number, not {value}")
    for name in counts:
        value = getattr(options, name)
        if value is not None and value > COUNTS:
            raise UserError(f"{name} must be at most {COUNTS}, not {value}")


def check_whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raises UserError for an option that is not a whole number, or is too small or too large.

    >>> check_whole("batch_size", 0)
    Traceback (most recent call last):
    experts.outside.errors.UserError: batch_size must be a whole number of 1 or more, not 0
    """
    bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
    try:
        right = not isinstance(value, bool) and least <= operator.index(value) <= (value if most is None else most)
    except TypeError:
        right = False
    if not right:
        raise UserError(f"{name} must be a whole number {bounds}, not {value!r}")


COUNTS = 2**31 - 1
"""The largest number of things that is taken; two such numbers can be multiplied in 64 bits."""

SEEDS = 2**32 - 1
"""The largest seed that PyTorch, NumPy and Python all take; the smallest is 0."""
