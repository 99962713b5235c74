"""The number that an answer gives, however it is written: `1'000`, `\\boxed{$9{,}500}`, `x = - 3`."""

from __future__ import annotations

import re
from collections import deque

# What is written in another way, and as what it is read.
WRITTEN = [
    (re.compile(r"[−–‐‑﹣－]"), "-"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"(?<=\d)(?:\{,\}|\{\\,\}|,\\[!,;:]|\\[!,;:]|\\ |~)\s?(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3})"), " "),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|[×*x])\s?10\s?\^\s?\{?([-+]?\d+)\}?"), r"e\1"),
]
NUMBER = re.compile(
    r"""
    (?: (?<!\d) \d{1,3} (?: ,\d{3} )+ (?! \d ) | (?<!\d) \d{1,3} (?: ['’]\d{3} )+ (?! \d )
      | (?<! \d ) \d{1,3} (?: [ ]\d{3} )+ (?! \d ) | \d+ )
    (?: \.\d+ )?  (?: [eE][-+]?\d+ )?
  | (?<! [\d.] ) \.\d+ (?: [eE][-+]?\d+ )?
    """,
    re.VERBOSE,
)
UNDER = re.compile(r"\s?/\s?\d+")
# 2:30, 3,5 and 2^10 are not their last digits, nor is an exponent or an index a number of its own.
GOES_ON = re.compile(r"(?:(?:[:,.]|\s?/\s?|\s?\^\s?\{?-?|\*\*)\d+)+")
LONGEST_LOOK = 12
# A line that opens with its number, and one that goes on with another one instead.
OPENS = re.compile(r"[*$\\\s]{0,6}[-−–]?\s?[$\\]{0,2}\d(?:[^\sA-Za-z]|\s\d{3}(?!\d))*(?<!,)(?!\s?[-+*/=×])")
OTHERS = re.compile(r"[^\d=]*(?:\bor\b|,\s)[^\d]*\d")


def find_number(text: str, fractions: bool = False) -> str:
    r"""The last number in a text as Python would write it, or "" where there is none, or it cannot be told.

    What stands in the last `\boxed{}` counts alone. A number that the text says no to is passed over ("7, not 8"), and
    one of several that it leaves open is none ("7 or 8").

    >>> find_number("from 5 to -$1,234.50."), find_number("3 / 4 cups", fractions=True)
    ('-1234.50', '3/4')
    >>> find_number("7, not 8"), find_number("7 or 8"), find_number("at 2:30")
    ('7', '', '')
    """
    for way, plain in WRITTEN:
        text = way.sub(plain, text)
    text = _boxed(text)
    end = 0
    found: deque[tuple[str, str]] = deque(maxlen=8)  # what stands before a number since the last one, and the number
    for match in NUMBER.finditer(text):
        if match.start() < end:
            continue
        before, start = text[max(end, match.start() - LONGEST_LOOK) : match.start()], end
        end, number = match.end(), match[0]
        under = UNDER.match(text, end)
        if under and fractions:
            number, end = number + under[0], under.end()
        goes_on = GOES_ON.match(text, end)
        if goes_on:
            number, end = "", goes_on.end()
        if re.search(r"[\^_]\{?-?\Z", before) and start:
            continue
        sign = "-" if number and _negative(text[max(0, match.start() - LONGEST_LOOK) : match.start()]) else ""
        found.append((text[max(start, match.start() - 40) : match.start()], sign + re.sub(r"[\s,'’+]", "", number)))
    while found:
        before, number = found.pop()
        if re.search(r"(?:\bnot|n['’]t)\s+[$-]{0,2}\Z", before):
            continue
        if found and re.fullmatch(r"\s*[^\W\d]*,?\s*(?:\bor\b|\bor maybe\b)\s*[$*-]{0,4}", before):
            return ""
        return number
    return ""


def final_line(text: str, mark: str) -> str:
    """What a text gives after the last `mark` that anything follows on its line, else below it; all without a mark.

    Of `$18 every day for 7 days` it is the number at the beginning.

    >>> final_line("2 + 2 = 4\\n#### 4 eggs\\nand 7 more\\n####", "####"), final_line("4 eggs", "####")
    ('4', '4 eggs')
    """
    if mark not in text:
        return text
    lines = [after.partition("\n")[0].strip() for after in text.split(mark)[1:]]
    below = text.rpartition(mark)[2].strip().partition("\n")[0]
    line = next(filter(None, reversed(lines)), below)
    starts = OPENS.match(line)
    if starts and "=" not in line:
        line = "" if OTHERS.match(line, starts.end()) else starts[0]
    return re.sub(r"\A[-−–]\s", "-", line)


def _negative(before: str) -> bool:
    """Whether the dash before a number is its sign: after a digit, a word or a bracket it is an operator."""
    dash = re.search(r"-(\s*)\$?\Z", before)
    if not dash:
        return False
    head = before[: dash.start()]
    if dash[1]:  # of "= - 3"; at the beginning of a line it is a bullet
        return bool(re.search(r"(?:[=:≈#(]|\bis)\s*\Z", head))
    return not re.search(r"[\w)\]}%]\Z", head)


def _boxed(text: str) -> str:
    """What stands in the last box that closes; the whole text where there is none."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for index in range(start + len(r"\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len(r"\boxed{") : index]
    return text
