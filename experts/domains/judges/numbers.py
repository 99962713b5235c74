r"""The numbers in a text, however they are written: `1'000`, `\boxed{$9{,}500}`, `x = - 3`.

Special ways of writing are first replaced by plain ones (`WAYS`). Then the numbers are read from left to right
(`readings`); one that belongs to an unfinished calculation, a range, a list, a date, a formula or an inequality cannot
be told.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experts.domains.judges.words import in_digits, multiplied
from experts.domains.judges.writing import answered, boxed, raised, without_tags

# Ways of writing → what is read instead.
WAYS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"[‐‑‒﹣]"), "-"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"(?<![\d\\,])\\[!,;:](?=\s?\d)"), " "),  # a space that LaTeX makes, before a number
    # Thousands in LaTeX: 9{,}500, 9,\!500, 9\,500, 9~500.
    (re.compile(r"(?<=\d)(?:\{\\?,\}|,\\[!,;:]|\\[!,;: ]|~)\s?(?=\d{3})"), ","),
    # Thousands set apart by non-breaking spaces.
    (re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3})"), " "),
    (re.compile(r"(?<=\d)_(?=\d{3}(?!\d))"), ","),
    # Points in place of commas and commas in place of points: 1.234,56, 1.234.567 and 1 234,56.
    (
        re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d\d?)(?!\d|[,.]\d)"),
        lambda match: f"{match[1].replace('.', '')}.{match[2]}",
    ),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?!\.?\d)"), lambda match: match[0].replace(".", "")),
    (re.compile(r"(?<![\d.,])(?<!\d )(\d{1,3}(?:[ '’]\d{3})+),(\d\d?)(?!\d|[,.]\d)"), r"\1.\2"),
    # A decimal comma, which a list of two has no currency to tell from: 12,50 €.
    (re.compile(r"(?<![\d.,])(\d{1,3}),(\d\d)(?=\s?(?:€|EUR\b))|(?<=€)(\s?\d{1,3}),(\d\d)(?![\d,])"), r"\1\3.\2\4"),
    # Dollars and cents in one sum.
    (
        re.compile(r"(?:\$|(?<![\d.,]))(\d[\d,]{0,12})(?:\sdollars?)?,?\s(?:and\s)?(\d\d?)\scents?\b"),
        lambda match: f"${match[1]}.{match[2]:0>2}",
    ),
    (
        re.compile(
            r"(?i)\b(?:step\s\d{1,3}\b(?![.,]\d)|(?:part|question|problem|example|answer|option)\s\d{1,3}\s?[:.)](?=\s))"
        ),
        "",
    ),
    (re.compile(r"[ ]*\\(?:text|textbf|mathrm|mathbf)\s?\{[ ]*([^{}]*?)[ ]*\}[ ]*"), r" \1 "),
    # Fractions, after a whole number with a space between: 1\frac{3}{4}, 1¾.
    (re.compile(r"(?<=\d)(?=\\[cdt]?frac|[¼-¾⅐-⅞])"), " "),
    (re.compile(r"\\[cdt]?frac\s?(?:\{(\d+)\}\s?\{(\d+)\}|(\d)(\d))"), r"\1\3/\2\4"),
    (re.compile(r"[¼-¾⅐-⅞]"), lambda match: unicodedata.normalize("NFKC", match[0]).replace("⁄", "/")),
    (re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|[×·*x])\s?10\s?(?:\^|\*\*)\s?[{(]?([-+]?\d+)[})]?"), r"e\1"),
    (re.compile(r"(?<=\d)\s?[kK]\b"), "e3"),
    (re.compile(r"(?<=\d)(?:M|\smn)\b"), "e6"),
    (re.compile(r"(?<=\d)(?:B|\s?bn)\b"), "e9"),
    # A sign in words, unless one number is subtracted from another.
    (re.compile(r"(?i)(?<![\w)}%])(?<!\d )(?:minus|negative) (?=[$\\]{0,2}\d)"), "-"),
]
NUMBER = re.compile(
    r"""
    (?: (?<! \d ) \d{1,3} (?: ,\d{3} )+    (?! \d )       # 1,000
      | (?<! \d ) \d{1,2} (?: ,\d{2} )+ ,\d{3} (?! \d )   # 12,34,567
      | (?<! \d ) \d{1,3} (?: ['’]\d{3} )+ (?! \d )       # 1'000
      | (?<! \d ) \d{1,3} (?: [ ]\d{3} )+  (?! \d )       # 1 000
      | \d+
    ) (?: \.\d+ )? (?: [eE][-+]?\d+ )?
    | (?<! [\w.] ) \.\d+ (?: [eE][-+]?\d+ )?              # .5
    """,
    re.VERBOSE,
)
UNDER = re.compile(r"\s?/\s?\d+")
# Of 3 1/2.
WHOLE = re.compile(r"\d{1,9}")
MIXED = re.compile(r" (?:and )?(\d{1,9})/(\d{1,9})(?!\d)")
# What joins two numbers into one thing that is neither of them.
JOINED = re.compile(
    r"""
    [*_$%]{0,4}
    (?: [ ]?[:;] | [,.'’′] | ,[ ](?:(?:and|or)[ ])? | \.{2,3}   # 2:30; 3,5; 1.2.3; 5'11; a list
      | [ \t]? (?: /| \^\{?-? | \*\*? | [-+–—×xX·⋅÷±~∨&∶<>≤≥] | \\(?:times|cdot|div|pm|q?quad)(?![a-z]) ) [ \t]?
      | [ ]{1,3} (?: or(?:[ ]maybe)? | and | as[ ]well[ ]as | to(?:[ ]the[ ]power[ ]of)? | through | until
              | (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6},?
              | by | (?:out[ ])?of(?:[ ](?:the|every))? | over | per | vs\.? | plus | minus | times | remainder | [rR]
              | \(?mod | choose | (?:divided|multiplied)[ ]by | added[ ]to | subtracted[ ]from ) [ ]{1,3}
      | (?= [ ] \d )                                      # 12 34
      | [ ] (?P<things>[a-z]{2,15}) [ ] [-–] (?= [ ]\d{1,9}[ ](?P=things)\b )   # 18 eggs - 7 eggs
      | [ ]? (?:h|ft) (?= [ ]?\d )                        # 2h30
      | [ ]? (?:hours?|hrs?|h|minutes?|degrees?|feet|foot|ft|dollars?|pounds?|lbs?|years?|weeks?|days?|km|kg|m)
        ,?[ ] (?:and[ ])?
        (?= \d{1,9} [ ]? (?:minutes?|min|seconds?|inche?s?|cents?|ounces?|oz|months?|days?|hours?|c?m|g|grams?)\b )
    )
    [ ]? [-$(*_]{0,4} (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ )
    """,
    re.VERBOSE,
)
# What makes a number a bound, a part of a formula, or an operand.
BOUND = re.compile(
    r"""
    (?: [<>≤≥≠±√⌊⌈] | [<>!]= | \\(?:leq?|geq?|lt|gt|neq?|pm|sqrt)[ ]?\{? | -\(
      | [\w)}][ ]?[+×÷] | \b[a-z]/                        # 5 apples + 3, x/3
      | [\w)}][ ](?:[x*/·⋅]|\\times|\\cdot)[ ] | \d\)(?: [*/] | [ ][-–][ ] )
      | [a-z)][ ](?:times|plus|(?:multiplied|divided)[ ]by)
      | (?<![A-Za-z])(?: (?:sqrt|log|ln|sin|cos|tan|exp)\b[ ]?\{? | [A-Za-z]\( ) | [\d)]\(
      # x = 3, y = 18; Tom: 3, Ann: 18
      | \b ([A-Za-z]\w{0,15}) [ ]?[:=][ ]? [-$]{0,2}[\d.]{1,20} [,;]?[ ](?:and[ ])?
        (?! \1\b | (?:total|sum|answer|result|altogether|together|all|so|step)\b ) [A-Za-z]\w{0,15} [ ]?[:=][ ]?
      | \b(?: than(?:[ ]or[ ]equal[ ]to)? | at[ ](?:least|most) | half(?:[ ]of)? | twice | double
            | (?:root|square|cube|minimum|maximum)[ ]of | under | over | above | below | exceeding
            | (?: \A | [^a-z ][ ] | \b(?:is|are|be|has|have|holds?|seats?|fits?|needs?|costs?|of|for)[ ] ) up[ ]to
            | between[ ][^.!?\n]{1,25}[ ]and
            | (?:thirds?|quarters?|out|%|percent)[ ]of ) | %[ ]of
    ) [ ]? [-$(]{0,2} \Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
# A left side that does something to its unknown: 2x = 18, |x| = 18, x - 3 = 18; but not 9 x 2 = 18.
UNSOLVED = re.compile(
    r"""
    (?: (?<![A-Za-z\d.]) [\d.]{1,20} [abnxyz] (?! [ ]? [$\d(] )
      | (?<![A-Za-z\d]) [abnxyz] (?= [ ]? (?: [-+*/^|!²³] | \\?times\b | \\cdot\b ) )
      | [-+*/^√] [ ]? [nxyz] (?! [ ]? [$\d(] ) )
    (?! [A-Za-z] ) (?: (?![A-Za-z]{3}) [^=\n,;] ){0,20} = [ ]? [-$]{0,2} \Z
    """,
    re.VERBOSE,
)
ARROW = re.compile(r"[-=]>\s?[-$]{0,2}\Z")
# An exponent, an index or the end of a name is no number of its own: m^2, x_1, CO2; that of USD18 is.
RAISED = re.compile(
    r"(?:\^\{?-?|[^\W_]_\{?|[)}]_\{?|(?<![^\W_])(?:[A-Za-z]|(?!(?:USD|EUR|GBP|CAD|AUD|INR)\Z)[A-Z]{2,9}|0[bxo]))\Z"
)
# What turns a number into another one, or into a bound: 18th, 18x, 18 - x, 18i, 18π, 101_2, 18 squared, 18 and a half,
# 1.30 pm, 18+, 18 or more.
FACTOR = re.compile(
    r"""
    (?: st | nd | rd | th | [abei] | (?:\s?[-+/]\s?)?[xyzn] | \s[xyz] ) (?!\w)
    | ‰ | -?ish\b | \s(?:[-+*/×÷]|\\times|\\cdot)\s*\Z | \s?=\s*\Z | \+ (?! \s? (?: [$\d(\\] | [a-z]\b ) )
    | \s? (?: <(?!-) | [>≤≥] | \\[lg](?:eq?|t)\b )
    | (?:\s[^\W\d]+)? ,?\s
      (?: (?:or|and)\s(?:more|fewer|less|above|over|below|under|up) | at\s(?:most|least) | minimum | max(?:imum)? )\b
    | _\{?\d | \s?(?:\\pi|\\sqrt|[π√]) | (?<=\.\d\d) \s?[aApP]\.?[mM]\b
    | \s (?: squared | cubed | factorial | doubled | tripled | halved | and\s(?:a|one)\s(?:half|third|quarter) )\b
    """,
    re.VERBOSE,
)
DASH = re.compile(r"-(\s*)\$?\Z")
BOXED_DASH = re.compile(r"(\\boxed\s?\{)\s?[-−–]\s")
# The number of an item of a list, at the beginning of a line.
ITEM = re.compile(r"(?m)^([ \t>*_#]{0,8})(?:[Ss]tep )?(\d{1,2})[.):](?=[\s*]|\Z)")
LOOK = 40  # characters before a number that are looked at
TAIL = 120  # characters before the last number that are read
UP_TO_LAST_DIGIT = re.compile(r"(?:.*\d)?", re.DOTALL)


@dataclass(frozen=True)
class Reading:
    """A number in a text, as Python would write it, or "" if it cannot be told."""

    value: str
    start: int
    end: int
    before: str
    """The text between the number before it and this one, at most `LOOK` characters."""


def written_plainly(text: str) -> str:
    """The end of a text, from a few words before its last number, in plain writing."""
    text = multiplied(in_digits(raised(boxed(BOXED_DASH.sub(r"\1-", unlabelled(answered(text)))))))
    last = len(UP_TO_LAST_DIGIT.match(text)[0])  # type: ignore[index]
    text = without_tags(text[text.rfind(" ", 0, max(0, last - TAIL)) + 1 :])
    for way, plain in WAYS:
        text = way.sub(plain, text)
    return text


def unlabelled(text: str) -> str:
    """The text without the numbers that label the lines of a list; the list has at least a first and a second.

    >>> unlabelled("1. Add.\\n2. Halve.\\n3."), unlabelled("2. That is all.")
    (' Add.\\n Halve.\\n', '2. That is all.')
    """
    items = [int(item[2]) for item in ITEM.finditer(text)]
    if not {1, 2} <= {*items}:
        return text
    return ITEM.sub(lambda item: item[1] if int(item[2]) <= len(items) else item[0], text)


def readings(text: str, fractions: bool) -> Iterator[Reading]:
    """The numbers in a text from left to right; several that are joined count as one that cannot be told."""
    end = 0
    for match in NUMBER.finditer(text):
        if match.start() < end:
            continue
        start, last = match.start(), end
        before = text[max(0, start - LOOK) : start]
        if RAISED.search(before):
            continue
        value, end = match[0], match.end()
        if fractions and (under := UNDER.match(text, end)):
            value, end = value + under[0], under.end()
        elif fractions and WHOLE.fullmatch(value) and (mixed := MIXED.match(text, end)):
            value, end = f"{int(value) * int(mixed[2]) + int(mixed[1])}/{mixed[2]}", mixed.end()
        while joined := JOINED.match(text, end):
            value, end = "", joined.end()
        bound = (BOUND.search(before) and not ARROW.search(before)) or UNSOLVED.search(before)
        if FACTOR.match(text, end) or bound:
            value = ""
        if value:
            value = _sign(before) + re.sub(r"[\s,'’+]", "", value)
        yield Reading(value, start, end, text[max(last, start - LOOK) : start])


def _sign(before: str) -> str:
    """ "-" if a dash before a number is its sign: after a digit, a word or a bracket it is an operator."""
    before = before.replace("–", "-")
    dash = DASH.search(before)
    if not dash:
        return ""
    head = before[: dash.start()]
    if dash[1]:  # as in "= - 3"; at the beginning of a line it is a bullet
        return "-" if re.search(r"(?:[=:≈#($]|\b(?:is|equals))\s*\Z", head) else ""
    return "" if re.search(r"[\w)\]}%]\Z", head) else "-"
