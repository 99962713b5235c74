r"""What an equation or an inequality says of its unknown: `x = 7` gives it, `2x = 7` and `x \ge 7` do not."""

from __future__ import annotations

import re

RELATION = re.compile(
    r"[<>≤≥≠≡]|\\(?:leq?|geq?|lt|gt|neq?|equiv|[pb]?mod|ldots|dots|cdots)(?![a-z])|\.\.\.|[-+*/]\s*\Z"
    r"|\\(?:cdot|times|div)\s*\Z|\?|\\in(?![a-z])\s*\\mathbb"
    r"|\\text\{(?:st|nd|rd|th)\}|\\text\{[^{}]*\b(?:or\s(?:more|less|fewer|greater)|at\s(?:least|most)|than)\b"
)
# What is only a name: \text{…}, an index, a function of something, an angle.
NAMES = re.compile(
    r"\\(?:text|mathrm|mathbf|operatorname|vec|overline)\s?\{[^{}]*\}|_(?:\{[^{}]*\}|\w)"
    r"|\\?[A-Za-z]+(?:\^\{?-?\d\}?)?\s?\([^()=]*\)|\\(?:sin|cos|tan|cot|sec|csc|angle|triangle)\b"
)
EITHER = re.compile(r"\\(?:text|mathrm)\s?\{\s*or\s*\}|\s\bor\b\s|\\lor\b")
BOUND = re.compile(r"([A-Za-z])\s*(<|>|≤|≥|\\leq?|\\geq?)\s*([^<>=≤≥]+)")
COMMAND = re.compile(r"\\[A-Za-z]+")
DONE = re.compile(r"[\d+\-*/^|!]|\\(?:frac|dfrac|tfrac|sqrt|log|ln|times|cdot|lfloor|lceil|pm)(?![a-z])")


def is_unsolved(expression: str) -> bool:
    r"""Whether an expression is an equation that does something to its one unknown instead of giving it.

    An equation with two unknowns cannot give them, so what it gives is what was asked for.

    >>> is_unsolved("2x = 7"), is_unsolved("|x| = 7"), is_unsolved(r"\frac{x}{2} = 7")
    (True, True, True)
    >>> is_unsolved("x_1 = 7"), is_unsolved("f(3) = 7"), is_unsolved("3 + 4 = 7"), is_unsolved("m + n = 7")
    (False, False, False, False)
    """
    left, equals, right = expression.partition("=")
    left = NAMES.sub("", left)
    unknowns = set(re.findall(r"[a-df-hj-z]", COMMAND.sub("", left)))  # not e and i; A is a matrix or an angle
    return bool(equals) and "=" not in right and len(unknowns) == 1 and bool(DONE.search(left))


def union(expression: str) -> str:
    r"""Two bounds of an unknown as the union of intervals that they give; any other expression as it is.

    >>> union(r"x < 1 \text{ or } x \ge 2"), union("x > 1")
    ('(-\\infty,1)\\cup[2,\\infty)', 'x > 1')
    """
    bounds = [BOUND.fullmatch(part.strip()) for part in EITHER.split(expression)]
    found = [(each[1], each[2], each[3].strip()) for each in bounds if each]
    if len(found) < max(2, len(bounds)) or len({unknown for unknown, _, _ in found}) > 1:
        return expression
    open_ = {"<": ")", ">": "("}
    intervals = [
        rf"(-\infty,{end}{open_.get(sign, ']')}"
        if sign[0] in "<≤" or sign[:2] == "\\l"
        else rf"{open_.get(sign, '[')}{end},\infty)"
        for _, sign, end in found
    ]
    return r"\cup".join(intervals)


def relations(expression: str) -> set[str]:
    r"""The signs by which an expression says something else than a value: a bound, a congruence, a row that goes on.

    >>> relations(r"x \equiv 7 \pmod{12}") == {r"\equiv", r"\pmod"}, relations("x = 7")
    (True, set())
    """
    result = re.split(r"(?<![<>!])=", expression)[-1]  # 1 + 2 + … + 10 = 55
    return {match[0] for match in RELATION.finditer(result)}
