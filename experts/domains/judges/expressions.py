r"""Finds an expression that a text gives without `$`, as LaTeX: math-verify would only read its last number."""

from __future__ import annotations

import re
import string

from experts.domains.judges.numbers import unlabelled
from experts.domains.judges.writing import boxed, raised

# How LaTeX marks where an expression begins.
DELIMITED = re.compile(r"(?<!\\)\$|\\boxed|\\\[|\\\(")
MARKED = r"(?:\$[^$]+\$|\\boxed\s?\{[^{}]*\})"
# "It is not $6$.", "Is it $6$?", "$3$ out of $6$" or "the square of $6$" at the end.
DENIED = re.compile(
    rf"(?:(?:\bnot?|n['’]t)\s+(?:be\s+)?|\$\s(?:out\sof|of|to|by)\s|\b(?:square|cube|root)\sof\s){MARKED}\W*\Z|{MARKED}[^.!?\n]*\?\W*\Z"
    rf"|{MARKED}\s(?:is|was)(?:n['’]t\b|\s(?:not|wrong|incorrect|false)\b)[^$\\]*\Z",
    re.IGNORECASE,
)
# "not $7$" after an answer.
REJECTED = re.compile(rf"[,;]\s(?:and\s)?not\s{MARKED}\W*\Z", re.IGNORECASE)
AT_END = re.compile(r"(\$[^$]+\$(?:(?:,|,?\s(?:and|or))\s\$[^$]+\$)*)[\s.*#$]*\Z")
# A formula that breaks off; of an amount of money, `$` is no beginning.
UNFINISHED = re.compile(r"(?:\\\[(?!.*\\\])|\\\((?!.*\\\))).*\Z", re.DOTALL)
OPEN = re.compile(r"(?!\d[\d.,]*\s[A-Za-z]{2}).*(?:[A-Za-z]\s?=|\\[A-Za-z]|\^)", re.DOTALL)
LAST = re.compile(r"\$([^$]+)\$\D*\Z")
# "The roots are:" and the items of their list.
ANNOUNCED = re.compile(
    r"(?<!find )(?<!find the )\b(?:solutions|roots|zeros|values|points|answers)\b[^\n]*:[*\s]*\n", re.IGNORECASE
)
ITEM = re.compile(
    r"\s*(?:[-*•]|\d[.)])\s+(?:\$([^$]+)\$|\\\((.+)\\\)|((?:[a-z]\s?=\s?)?[-+(]?\d[-\d .,()/]*))[.,;]?\s*"
)
AND = re.compile(r",?\s(?:and|or)\s")
# What leads to an answer on its line: "The answer is", "Final answer:", "Roots are".
LEAD = re.compile(
    r".*(?:\b(?:is|are|was|were|equals|be|get|has|have|so|hence|thus|therefore|answer|either|both|at|points?)\b:?"
    r"|['’]s\b|:(?!\s?\d))\s*",
    re.IGNORECASE,
)
NO_LETTER = r"(?<![\\A-Za-z])"
FUNCTIONS = "arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|ln"
BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.*?)(?<=\S)\*\*(?!\w)")
# Ways of writing → LaTeX's.
WAYS = [
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\?\$"), ""),
    (re.compile(r"\\(?:text|mathrm)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(rf"{NO_LETTER}sqrt\s?(?:\(([^()]*)\)|(\d+|[a-z])(?![a-z]))"), r"\\sqrt{\1\2}"),
    (re.compile(rf"{NO_LETTER}({FUNCTIONS})(?![a-z])"), r"\\\1 "),
    (re.compile(rf"π|{NO_LETTER}pi(?![a-z])"), r"\\pi "),
    (re.compile(rf"∞|{NO_LETTER}(?:infinity|inf|oo)(?![a-z])"), r"\\infty "),
    (re.compile(r"±|\+/-"), r"\\pm "),
    (re.compile(r"≈"), r"\\approx "),
    (re.compile(r";(?=\s)"), ","),
    (re.compile(r"∈|(?<=[a-z]\s)in(?=\s[{(\[])"), r"\\in "),
    (re.compile(r"(\A|=\s?|\\in\s+)\{([^{}\\]*)\}\Z"), r"\1\\{\2\\}"),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"≤|<="), r"\\le "),
    (re.compile(r"≥|>="), r"\\ge "),
    (re.compile(r"[*·]"), r"\\cdot "),
    (re.compile(r"×"), r"\\times "),
    (re.compile(r"(?<![\d.])(\d+)/(\d+)\s?(?=\\(?:pi|sqrt))"), r"\\frac{\1}{\2}"),  # 2/3 pi
    (re.compile(r"(?<=\d)\s(?=\\(?:pi|sqrt)|[a-z]\b)"), ""),
    (re.compile(r"\s*,?\s+(?:and|or)\s+"), ", "),
    (
        re.compile(
            r"(?<=\S)\s*\b(?:square |cubic )?(?:units?|[cmk]m|in(?:ches)?|feet|ft)\s?(?:\^?\{?[23]\}?)?[\s.]*\Z"
        ),
        "",
    ),
]
# Numbers, operators, brackets, commands of LaTeX, and letters that stand for themselves.
EXPRESSION = re.compile(
    r"""
    (?: [\d\s+\-/^_=<>()\[\]{},.!|:&%] | \\(?:begin|end)\{[a-z]{1,9}\} | \\[A-Za-z]+ | \\[\\{},;!\ %]
      | (?<![A-Za-z]) [A-Za-z] (?![A-Za-z]) | (?<=\d) [a-z]{2} (?![A-Za-z])
    )+
    """,
    re.VERBOSE,
)
# "3x = 9, x = 3" is a derivation, "x = 1, x = 2" is not.
SOLVED = re.compile(r".*[^\s,=]\s?(?P<letter>[a-z])\b[^=,]*=[^=,]*,\s*(?P<end>(?P=letter)\s?=[^=,]+)")
LONGEST = 200  # the most characters in a line that is an expression
EMPTY = string.whitespace + "#"  # after an answer


def bare_expression(text: str) -> str:
    r"""The expression that a text without `$` and `\boxed` ends with, as LaTeX; "" for prose.

    >>> bare_expression("The answer is 10 pi."), bare_expression("y=2x+3"), bare_expression("7 apples")
    ('10\\pi', 'y=2x+3', '')
    """
    line = BOLD.sub(r"\1", raised(text.rstrip(EMPTY).rpartition("\n")[2]))
    if len(line) > LONGEST:
        return ""
    for written in (line, LEAD.sub("", line)):
        for way, latex in WAYS:
            written = way.sub(latex, written)
        written = written.strip().rstrip(".;, ")
        if EXPRESSION.fullmatch(written):
            return _solution(written)
    return ""


def final_expression(text: str) -> str:
    r"""The content of the last `\boxed{}` in a text, else of the dollars at its end, else its `bare_expression`.

    >>> final_expression("so $x$ is $(2, 3)$."), final_expression(r"\boxed{1} or so"), final_expression("x = 4")
    ('(2, 3)', '1', 'x = 4')
    """
    if "\\boxed" in text:
        return _solution(boxed(text))
    if listed := _listed(text):
        return listed
    at_end = AT_END.search(text)
    return _solution(AND.sub(", ", at_end[1].replace("$", ""))) if at_end else bare_expression(unlabelled(text))


def _listed(text: str) -> str:
    """The items of a list of roots or the like that ends a text, with commas between; "" if there is none."""
    *_, announced = [None, *ANNOUNCED.finditer(text)]
    lines = text[announced.end() :].strip().splitlines() if announced else []
    items = [item for line in lines if line and (item := ITEM.fullmatch(line))]
    complete = len(items) > 1 and len(items) == len([*filter(str.strip, lines)])
    return ", ".join((item[1] or item[2] or item[3]).strip(" .,") for item in items) if complete else ""


def breaks_off(text: str) -> bool:
    r"""Whether a text ends within a formula.

    >>> breaks_off(r"so \[x = 7 \cdot"), breaks_off("so $x = 7"), breaks_off("so $x = 7$"), breaks_off("It costs $7")
    (True, True, False, False)
    """
    *before, end = re.split(r"(?<!\\)\$\$?", text.rstrip().rpartition("\n\n")[2])
    return bool(UNFINISHED.search(text) or (len(before) % 2 and OPEN.match(end)))


def last_paragraph(text: str) -> str:
    """The last paragraph with a formula or a digit, without its label, if the text marks any formula; else the text."""
    if not DELIMITED.search(text):
        return text
    pairs = zip(text.split("\n\n"), unlabelled(text).split("\n\n"), strict=True)
    return [bare for each, bare in pairs if DELIMITED.search(each) or re.search(r"\d", each)][-1]


def _solution(expression: str) -> str:
    """What a derivation ends with, or the expression as it is."""
    solved = SOLVED.fullmatch(expression) if len(expression) <= LONGEST else None
    return solved["end"] if solved else expression


def after_lead(text: str) -> str:
    """The answer that the last line of a text leads to.

    >>> after_lead("Let me see. The answer is (C)")
    '(C)'
    """
    return LEAD.sub("", text.rstrip().rpartition("\n")[2][:LONGEST])
