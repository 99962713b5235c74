"""Numbers that are written in words, wholly (`twenty-one`) or in part (`5 million`, `3 dozen`)."""

from __future__ import annotations

import re
from decimal import Decimal

WORDS = """
    zero one two three four five six seven eight nine
    ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fifty sixty seventy eighty ninety
"""
ONES, TEENS, TENS = (line.split() for line in WORDS.strip().splitlines())
VALUES = dict(zip([*ONES, *TEENS, *TENS], [*range(20), *range(20, 100, 10)], strict=True))
POWERS = {"thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
TIMES = {"hundred": 100, "dozen": 12, **POWERS}

LOW = rf"(?:(?:{'|'.join(TENS)})(?:[-\s](?:{'|'.join(ONES[1:])}))?|{'|'.join([*TEENS, *ONES])})"
HIGH = rf"(?:(?:{'|'.join(ONES[1:])}|an?)\shundred(?:\s(?:and\s)?{LOW})?|{LOW})"
POWER = rf"\s(?:{'|'.join(POWERS)})"
SPELT = re.compile(
    rf"(?<![\w-])(?:{HIGH}{POWER},?\s(?:and\s)?)*{HIGH}(?:{POWER})?(?![\w-])"
    r"(?!\s(?:half|halves|thirds?|quarters?|fourths?|fifths?|tenths?)\b)",
    re.IGNORECASE,
)
# 5 million, 5\text{ million}.
MULTIPLIED = re.compile(
    rf"""
    (?<![\d.,/]) (\d{{1,3}}(?:,\d{{3}})+|\d{{1,20}}) (\.\d{{1,20}})?
    ((?: \s | \\[ ,;] | ~ ){{1,3}} | (?: \s | \\[ ,;] | ~ ){{0,3}} \\(?:text|mathrm)\s?\{{ \s? )
    (?i: ({"|".join(TIMES)})s? ) \b
    """,
    re.VERBOSE,
)


def in_digits(text: str) -> str:
    """The text with `21` for `twenty-one`, if it has no digits of its own.

    >>> in_digits("The answer is twenty-one."), in_digits("two hundred and five"), in_digits("No one has 5.")
    ('The answer is 21.', '205', 'No one has 5.')
    """
    return text if re.search(r"\d", text) else SPELT.sub(_spelt, text)


def _spelt(match: re.Match[str]) -> str:
    if match[0].lower() == "one" and _is_pronoun(match):
        return match[0]
    total = part = 0
    for word in re.split(r"[-\s,]+", match[0].lower()):
        if word in POWERS:
            total, part = total + part * POWERS[word], 0
        elif word == "hundred":
            part *= 100
        else:
            part += VALUES.get(word, word in ("a", "an"))
    return str(total + part)


def _is_pronoun(match: re.Match[str]) -> bool:
    """Whether "one" stands for somebody or something, as in "no one" and "the right one"; not in "it is one"."""
    before = match.string[max(0, match.start() - 10) : match.start()]
    return bool(re.search(r"[\w,]\s\Z", before) and not re.search(r"(?i)\b(?:is|are|has|have|equals)\s\Z", before))


def multiplied(text: str) -> str:
    r"""The text with `5000000` for `5 million`.

    >>> multiplied("$1.5 million"), multiplied("3 dozen eggs"), multiplied(r"2\text{ thousand dollars}")
    ('$1500000', '36 eggs', '2000\\text{ dollars}')
    """

    def product(match: re.Match[str]) -> str:
        value = Decimal(match[1].replace(",", "") + (match[2] or "")) * TIMES[match[4].lower()]
        whole = f"{value:f}"
        return (whole.rstrip("0").rstrip(".") if "." in whole else whole) + match[3].strip()

    return MULTIPLIED.sub(product, text)
