r"""The number that an answer gives, however it is written: `1'000`, `\boxed{$9{,}500}`, `x = - 3`.

Special ways of writing are first replaced by plain ones (`WAYS`). Then the numbers are read from left to right
(`_readings`); one that belongs to an unfinished calculation, a range, a list, a date, a formula or an inequality cannot
be told. The last number that the text does not reject is the answer.
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
    (re.compile(r"(?i)\b(?:step|part|question|problem|example|answer|option)\s\d{1,3}\s?[:.)](?=\s)"), ""),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}"), r" \1 "),
    # Fractions, after a whole number with a space between: 1\frac{3}{4}, 1¾.
    (re.compile(r"(?<=\d)(?=\\[cdt]?frac|[¼-¾⅐-⅞])"), " "),
    (re.compile(r"\\[cdt]?frac\s?(?:\{(\d+)\}\s?\{(\d+)\}|(\d)(\d))"), r"\1\3/\2\4"),
    (re.compile(r"[¼-¾⅐-⅞]"), lambda match: unicodedata.normalize("NFKC", match[0]).replace("⁄", "/")),
    (re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|[×·*x])\s?10\s?\^\s?[{(]?([-+]?\d+)[})]?"), r"e\1"),
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
              | by | of | out[ ]of | over | per | vs\.? | plus | minus | times | remainder | [rR] | \(?mod | choose
              | (?:divided|multiplied)[ ]by | added[ ]to | subtracted[ ]from ) [ ]{1,3}
      | (?= [ ] \d )                                      # 12 34
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
      | (?<![A-Za-z])(?: (?:sqrt|log|ln|sin|cos|tan|exp)\b[ ]?\{? | [A-Za-z]\( ) | [\d)]\(
      # x = 3, y = 18; Tom: 3, Ann: 18
      | \b ([A-Za-z]\w{0,15}) [ ]?[:=][ ]? [-$]{0,2}[\d.]{1,20} [,;]?[ ](?:and[ ])?
        (?! \1\b | (?:total|sum|answer|result|altogether|together|all|so|step)\b ) [A-Za-z]\w{0,15} [ ]?[:=][ ]?
      | \b(?: than(?:[ ]or[ ]equal[ ]to)? | at[ ](?:least|most) | half(?:[ ]of)? | twice | double | root[ ]of
            | (?:minimum|maximum)[ ]of | under | over | above | below | up[ ]to | between[ ][^.!?\n]{1,25}[ ]and
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
    | ‰ | -?ish\b | \+ (?! \s? (?: [$\d(\\] | [a-z]\b ) )
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
DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|rather\s+than|instead\s+of|anything\s+but)|n['’]t)(?:\s+be)?\s+[$*-]{0,4}\Z"
    r"|\bdoubt\b[^.!?\n]{0,20}\Z|[❌✗✘]\s?\Z",
    re.IGNORECASE,
)
# What takes back the number before it: "18 is wrong", "18? No".
DENIED_AFTER = re.compile(
    r"""
    [*_$)\s]{0,4} \? (?!\s*yes\b) | \s?[❌✗✘]
    | \W{0,4} (?:
        (?:(?:no|oh|wait|hmm),?\s)? (?:that|this|it)(?:'s|\sis|\swas)\s(?:wrong|incorrect|false|not)\b
        | \s(?:is|was)(?:n['’]t|\snot)\s(?:it|right|correct|the\b)
        | \s(?:is|was|(?:would|must)\sbe)\s(?:the\s)?(?:wrong|incorrect|false)\b
      )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Between two numbers that a text leaves open: "7 apples or maybe 8", "x = 7 or x = 8".
OPEN = re.compile(
    r"[\s$*_]*[^\W\d]*,?\s*\(?(?:or\b|(?:or\s)?(?:maybe|perhaps|possibly)\b)\s*(?:[a-z]\s?=\s?)?[$*_-]{0,4}",
    re.IGNORECASE,
)
# The last sentence, if it asks for a number, or whether it is this one.
ASKS = re.compile(r"(?:\d|\bhow\s+(?:many|much)\b|\bwhat\b)[^.!?\n]*\?\W*\Z", re.IGNORECASE)
LOOK = 40  # characters before a number that are looked at
TAIL = 120  # characters before the last number that are read
UP_TO_LAST_DIGIT = re.compile(r"(?:.*\d)?", re.DOTALL)


@dataclass(frozen=True)
class _Reading:
    """A number in a text, as Python would write it, or "" if it cannot be told."""

    value: str
    start: int
    end: int
    before: str
    """The text between the number before it and this one, at most `LOOK` characters."""


def find_number(text: str, fractions: bool = False) -> str:
    r"""The last number in a text as Python would write it, or "" if there is none or it cannot be told.

    If there is a `\boxed{}`, only the last one counts. A number that the text rejects is passed over ("7, not 8");
    alternatives that it leaves open and calculations that it does not finish give no number ("7 or 8", "7 + 8"). Units
    are ignored: `50%` is 50, `2 thousand km` is 2e3.

    >>> find_number("5, then -$1,234.50."), find_number("3 / 4 cups", fractions=True)
    ('-1234.50', '3/4')
    >>> find_number("7, not 8"), find_number("7 or 8"), find_number("at 2:30")
    ('7', '', '')
    """
    text = _written_plainly(text)
    if ASKS.search(text[-2 * TAIL :]):
        return ""
    readings = list(_readings(text, fractions))
    while readings and _is_denied(text, readings[-1]):
        readings.pop()
    if not readings or (len(readings) > 1 and OPEN.fullmatch(readings[-1].before)):
        return ""
    return readings[-1].value


def _is_denied(text: str, reading: _Reading) -> bool:
    return bool(DENIED.search(reading.before) or DENIED_AFTER.match(text, reading.end))


def final_line(text: str, mark: str) -> str:
    """The answer after the last `mark` that is followed by anything on its line, else below it; else the whole text.

    The answer is one line, and may follow a line that only announces it. From `$18 every day for 7 days` only the
    number at the beginning is taken.

    >>> final_line("2 + 2 = 4\\n#### 4 eggs\\nand 7 more\\n####", "####"), final_line("4 eggs", "####")
    ('4', '4 eggs')
    """
    text = answered(text)
    parts = [[line.strip(EMPHASIS) for line in part.split("\n")] for part in text.split(mark)[1:]]
    beside = [lines for lines in parts if not ASIDE.fullmatch(lines[0])]
    below = [lines for lines in parts if not lines[0] and any(lines)]
    if not (beside or below):
        return text.replace(mark, "")
    return _opening(next((line for line in (beside or below)[-1] if not HEADING.fullmatch(line)), ""))


EMPHASIS = " \t\r*_"
# A line that announces the answer below it, or has nothing to read.
HEADING = re.compile(r"(?:(?:the |my )?(?:final |correct )?(?:answer|result|solution)(?: is)?)?\W*", re.IGNORECASE)
# What gives no answer after a mark.
ASIDE = re.compile(r"\W*(?:(?:the )?(?:end|done|explanation|reasoning|check|verification|note)\W*)?", re.IGNORECASE)
# What may come before the number that opens a line: a label, signs.
LABEL = re.compile(r"(?:[A-Za-z][A-Za-z ]{0,30}:)?[\s*$£€¥\\(]{0,6}(?:[-–]\s?)?[$£€¥\\]{0,2}")
REMARK = re.compile(r"\([^()]*\)")
# Another number in its place.
OTHER = re.compile(
    r"[^\d=]*(?:\b(?:or|maybe|perhaps|possibly)\b|,\s(?!(?:not|which|since|because|as|i\.?e)\b)|\b(?:and|plus)\s\W?(?=\d))[^\d]*\d"
)
EQUALS = re.compile(r".*(?<![<>!])=>?")


def _opening(line: str) -> str:
    """The number that opens a line, or the result it works out; the whole line if it opens with something else."""
    line = _written_plainly(line)
    worked_out = EQUALS.match(REMARK.sub(lambda remark: " " * len(remark[0]), line))
    if worked_out and not UNSOLVED.search(worked_out[0]):
        line = line[worked_out.end() :]
    line = re.sub(r"\A\W{0,4}[-–]\s(?=[$\\]{0,2}\d)", "-", line)
    first = next(_readings(line, fractions=True), None)
    opens = first is not None and LABEL.fullmatch(line[: first.start])
    if first is None or not opens or _is_denied(line, first) or ASKS.search(line):
        return line
    return "" if OTHER.match(line, first.end) else first.value


def _written_plainly(text: str) -> str:
    """The end of a text, from a few words before its last number, in plain writing."""
    text = multiplied(in_digits(raised(boxed(BOXED_DASH.sub(r"\1-", answered(text))))))
    last = len(UP_TO_LAST_DIGIT.match(text)[0])  # type: ignore[index]
    text = without_tags(text[text.rfind(" ", 0, max(0, last - TAIL)) + 1 :])
    for way, plain in WAYS:
        text = way.sub(plain, text)
    return text


def _readings(text: str, fractions: bool) -> Iterator[_Reading]:
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
        yield _Reading(value, start, end, text[max(last, start - LOOK) : start])


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
