r"""Ways of writing mathematics that math-verify does not read, as ones that it does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from experts.domains.judges.units import without_words
from experts.domains.judges.words import in_digits, multiplied


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, fixed, period = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed)) + Fraction(int(period), 10 ** len(period) - 1)
    value /= 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


WAYS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (
        re.compile(r"(?<![\d.,])(?<!\d )\d{1,3}(?:(?:[ '’\u00a0\u2009\u202f]|\\[,!;: ])\d{3})+(?![\d'’])"),
        lambda number: "".join(filter(str.isdecimal, number[0])),
    ),
    (re.compile(r"(?<=[\d})])\.(?=\s*(?:\}|\\\]|\\\)))"), ""),  # the full stop of \boxed{7.} and \[7.\]
    (re.compile(r"√\s?(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|[a-z])(?![a-z]))"), r"\\sqrt{\1\2\3}"),
    (re.compile(r"[¼-¾⅐-⅞]"), lambda sign: unicodedata.normalize("NFKC", f" {sign[0]}").replace("⁄", "/")),
    (re.compile(r"(?<=\d)\s{1,2}(\d+)/(\d+)"), r"\\frac{\1}{\2}"),  # 3 1/2
    (re.compile(r"(?<=\d) i(?!\w|\.e)|\\mathrm\s?\{i\}"), "i"),
    (re.compile(r"(?<=[\])])\s?U\s?(?=[\[(])"), r"\\cup "),
    (re.compile(r"\\([lr])brace(?![a-z])"), lambda brace: r"\{" if brace[1] == "l" else r"\}"),
    (re.compile(r"\\text\s?\{\s*,\s*(?:and\s*)?\}"), ", "),
    (re.compile(r"\\varnothing\b|∅"), r"\\emptyset"),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"°"), r"^\\circ "),
    (re.compile(r"(?<![\w)\]}])(?<![\w)\]}]\s)–(?=\d)"), "-"),
    (re.compile(r"\\color\s?\{\w+\}"), ""),
    (re.compile(r"(?<![\w.])(\d{1,9}(?:\.\d{1,9})?)[eE]\+?(-?\d{1,3})(?!\w)"), r"\1\\times 10^{\2}"),
    (re.compile(r"(\d{0,9})\.(\d{0,9})\\overline\s?\{(\d{1,9})\}"), _repeating),
    # Bases in words: 12 (base 3).
    (re.compile(r"(?<=\d)\s?\(?\s?(?:\\text\{\s?)?\(?(?:in\s)?base[-\s](\d{1,2})\)?\}?"), r"_{\1}"),
]


def as_latex(text: str) -> str:
    r"""The text as LaTeX that math-verify reads.

    >>> as_latex(r"1\,234"), as_latex("3e8"), as_latex(r"0.1\overline{6}"), as_latex("5 million"), as_latex("seven")
    ('1234', '3\\times 10^{8}', '\\frac{1}{6}', '5000000', '7')
    """
    text = in_digits(text)
    for way, latex in WAYS:
        text = way.sub(latex, text)
    return without_words(multiplied(text))
