r"""The unit that an expression names after its number: `5\text{ cm}^2` is square centimetres, `10 p.m.` an hour."""

from __future__ import annotations

import re

NAMES = """
    mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre
    in inch inche | ft foot feet | yd yard | mi mile | mg milligram | g gram | kg kilogram | lb pound | oz ounce
    ml milliliter millilitre | l liter litre | gal gallon
    s sec second | min minute | h hr hour | day | week | month | year
    km/h kph kmh | mph | m/s | dollar | cent | am | pm | °c | °f
"""
UNITS = {name: names.split()[0] for line in NAMES.splitlines() for names in line.split("|") for name in names.split()}
# How LaTeX writes words, degrees and spaces.
PLAIN = [
    (re.compile(r"\\(?:text|textrm|mathrm|mbox)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s?\{?\\circ\}?"), "°"),
    (re.compile(r"\\[ ,;!]|~|\\?\$"), " "),
    (re.compile(r"¢|\\cent\b"), " cents"),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
    (re.compile(r"(?<=[ap])\.\s?m\b"), "m"),
]
NAMED = re.compile(
    r"(?:\d|\\pi\b)[})\s]*(?:(?P<kind>square|sq\.?|cubic|cu\.?)\s)?\s*(?P<name>°\s*[CFcf]|[A-Za-z]+(?:/[A-Za-z]+)?)"
    r"\s*(?:\^\s?\{?(?P<power>[23])\}?)?\W*\Z"
)
DOLLARS = re.compile(r"\A\W*\\\$\s?[\d.,]+\W*\Z")
IN_WORDS = re.compile(r"\\(?:text|mathrm)\s?\{\s*(-?[\d.,]+)(\s[^{}]*)\}")
LEAST = 3  # letters of what is no unit
NOTHING = {"degrees", "degree", "percent", "unit", "units", "times", "mod", "and", "rad", "radians"}
LONGEST = 200  # characters that are read at the end


def unit(expression: str) -> tuple[str, int] | None:
    r"""The unit that an expression ends with, under one name, and its power; None if there is no known unit.

    >>> unit(r"5\text{ cm}^2"), unit("x = 5 square centimeters."), unit("10 p.m."), unit("5 apples")
    (('cm', 2), ('cm', 2), ('pm', 1), None)
    """
    found = thing(expression)
    return found if found and found[0] in UNITS.values() else None


def thing(expression: str) -> tuple[str, int] | None:
    r"""The unit that an expression ends with, as `unit` gives it, or whatever else it counts.

    >>> thing("5 apples"), thing(r"\$5"), thing(r"5\pi"), thing("7x")
    (('apple', 1), ('dollar', 1), None, None)
    """
    if DOLLARS.match(expression):
        return "dollar", 1
    plain = expression[-LONGEST:]
    for way, words in PLAIN:
        plain = way.sub(words, plain)
    named = NAMED.search(plain)
    if not named or re.search(r"\d[A-Za-z]\W*\Z", plain):  # 5m is a product
        return None
    name = "".join(named["name"].split()).lower()
    known = UNITS.get(name) or UNITS.get(name.removesuffix("s"))
    power = {"s": 2, "c": 3}.get((named["kind"] or "").lower()[:1], int(named["power"] or 1))
    if not known and (len(name) < LEAST or name in NOTHING or named["kind"]):
        return None
    return known or name.removesuffix("s"), power


def without_words(text: str) -> str:
    r"""The text with `5\text{ cm}` for `\text{5 cm}`: a number with a unit is not a word.

    >>> without_words(r"\boxed{\text{5 cm}}"), without_words(r"\text{5 doors}")
    ('\\boxed{5\\text{ cm}}', '\\text{5 doors}')
    """
    return IN_WORDS.sub(lambda words: rf"{words[1]}\text{{{words[2]}}}" if unit(words[0]) else words[0], text)
