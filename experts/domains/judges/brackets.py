r"""Whether several things are given in an order: `(2, 3)` is a point or an interval, `2, 3` or `\{2, 3\}` a set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

PLAIN = [
    (re.compile(r"\\left|\\right|\\[Bb]igg?[lr]?|\\[,;! ]|~|\$"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))|\{,\}"), ""),  # thousands
    (re.compile(r"\\(?:text|mathrm)\s?\{\s*,?\s*(?:and|or)\s*\}|,?\s(?:and|or)\s"), ","),
]
# What gives the expression a name: "x =", "(x, y) =", "x \in".
NAME = re.compile(r"\A\s*[^=]*(?:=|\\in\b|∈)\s*")
ASSIGNED = re.compile(r"\s*([A-Za-z]\w?)\s*=([^=]+)")
LONGEST = 400  # characters that are read at the end


def arrangement(expression: str) -> Literal["order", "set"] | None:
    r"""How an expression arranges the several things that it gives; None if it gives only one, or names each.

    >>> arrangement("(2, 3)"), arrangement("2, 3"), arrangement(r"\{(2, 3), (3, 2)\}"), arrangement("x = 2, x = 3")
    ('order', 'set', 'set', 'set')
    >>> arrangement("10,000"), arrangement("x = 2, y = 3"), arrangement(r"(1, 2) \cup (3, 4)"), arrangement("f(x, y)")
    (None, None, None, None)
    """
    expression = _plain(expression)
    if len(list(_parts(expression))) > 1:
        return None if point(expression) else "set"
    expression = NAME.sub("", expression)
    if expression.startswith("\\{"):
        return "set"
    return "order" if _in_brackets(expression) and len(list(_parts(expression[1:-1]))) > 1 else None


def point(expression: str) -> str | None:
    r"""The point whose coordinates an expression names, in the order of their names; None for any other expression.

    >>> point("y = 3, x = 2"), point(r"x=2 \text{ and } y=3"), point("x = 2, x = 3"), point("2, 3")
    ('(2,3)', '(2,3)', None, None)
    """
    named = [ASSIGNED.fullmatch(part) for part in _parts(_plain(expression))]
    values = {each[1]: each[2].strip() for each in named if each}
    return f"({','.join(values[name] for name in sorted(values))})" if 1 < len(values) == len(named) else None


def _plain(expression: str) -> str:
    expression = expression[-LONGEST:]
    for way, plain in PLAIN:
        expression = way.sub(plain, expression)
    return expression.strip().rstrip(".")


def _parts(expression: str) -> Iterator[str]:
    """The parts between commas that no bracket encloses."""
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
