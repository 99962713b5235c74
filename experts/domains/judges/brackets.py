r"""Whether several things are given in an order: `(2, 3)` is a point or an interval, `2, 3` or `\{2, 3\}` a set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

PLAIN = [
    (re.compile(r"\\left|\\right|\\[Bb]igg?[lr]?|\\[,;! ]|~|\$"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))|\{,\}"), ""),  # of thousands
    (re.compile(r"\\(?:text|mathrm)\s?\{\s*,?\s*(?:and|or)\s*\}|,?\s(?:and|or)\s"), ","),
    (re.compile(r"\\lbrace"), r"\\{"),
    (re.compile(r"\\rbrace"), r"\\}"),
]
# What names it: "x =", "(x, y) =", "x \in".
NAME = re.compile(r"\A\s*[^=]*(?:=|\\in\b|∈)\s*")
ASSIGNED = re.compile(r"\A\s*([A-Za-z]\w?)\s*=")
LONGEST = 400  # characters that are read


def arrangement(expression: str) -> Literal["order", "set"] | None:
    r"""What an expression makes of the several things that it gives; None where it gives one, or names each.

    >>> arrangement("(2, 3)"), arrangement("2, 3"), arrangement(r"\{(2, 3), (3, 2)\}"), arrangement("x = 2, x = 3")
    ('order', 'set', 'set', 'set')
    >>> arrangement("10,000"), arrangement("x = 2, y = 3"), arrangement(r"(1, 2) \cup (3, 4)"), arrangement("f(x, y)")
    (None, None, None, None)
    """
    if len(expression) > LONGEST:
        return None
    for way, plain in PLAIN:
        expression = way.sub(plain, expression)
    expression = expression.strip().rstrip(".")
    parts = list(_parts(expression))
    if len(parts) > 1:
        names = [assigned[1] for part in parts if (assigned := ASSIGNED.match(part))]
        return None if len(set(names)) > 1 else "set"
    expression = NAME.sub("", expression)
    if expression.startswith("\\{"):
        return "set"
    return "order" if _in_brackets(expression) and len(list(_parts(expression[1:-1]))) > 1 else None


def _parts(expression: str) -> Iterator[str]:
    """What stands between the commas that no bracket encloses."""
    depth = start = 0
    for index, character in enumerate(expression):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield expression[start:index]
            start = index + 1
    yield expression[start:]


def _in_brackets(expression: str) -> bool:
    """Whether the bracket that opens an expression closes at its end."""
    depth = 0
    for index, character in enumerate(expression):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth == 0:
            return index == len(expression) - 1 and index > 0
    return False
