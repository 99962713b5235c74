"""The ready rewards: `(text, answer) -> score`, 1.0 for a right answer and 0.0 for any other text.

They are right about tidy answers and strict with the rest. None of them raises or hangs, whatever the text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from experts.domains.judges import judge
from experts.domains.numbers import find_number

# math-verify reads the end of a text only, where an answer stands.
MATH_CHARACTERS = 2000


def exact(text: str, answer: str) -> float:
    """The text is the answer, but for case, white space and trailing punctuation.

    >>> exact(" New  york. ", "New York")
    1.0
    """
    return float(_plain(text) == _plain(answer))


def last_word(text: str, answer: str) -> float:
    """The last word of the text is the answer, but for case and the punctuation around it.

    >>> last_word("It must be a **cat**.", "cat")
    1.0
    """
    return float(find_word(text).casefold() == answer.strip(EDGES).casefold())


def last_number(text: str, answer: str) -> float:
    """The last number in the text equals the answer's, exactly; fractions are read only where the answer is one.

    >>> last_number("That makes $1,234.50.", "1234.5"), last_number("x = −7", "-7"), last_number("5-3", "3")
    (1.0, 1.0, 1.0)
    >>> last_number("6/8 of it", "3/4"), last_number("14/2", "2")
    (1.0, 0.0)
    """
    right = find_number(answer, fractions=True)
    given = find_number(text, fractions="/" in right)
    return float(_value(given) is not None and _value(given) == _value(right))


def choice(text: str, answer: str, choices: Sequence[str] = ()) -> float:
    """The text names the right choice and no other, by its letter or its words; a final "answer: …" has the last say.

    Args:
        text: What the model wrote.
        answer: The right choice, as a letter or as one of `choices`.
        choices: The texts of choices A, B, …; without them only letters count.

    >>> choice("The answer is (B).", "B"), choice("Lyon, no, Paris. Answer: Paris", "A", ["Paris", "Lyon"])
    (1.0, 1.0)
    >>> choice("Paris or Lyon", "A", ["Paris", "Lyon"])
    0.0
    """
    texts = [_plain(c) for c in choices]
    label = re.fullmatch(r"\W*([A-Za-z])\W*", answer)
    if _plain(answer) in texts:
        right = texts.index(_plain(answer))
    elif label:
        right = _index(label[1])
    else:
        return 0.0
    statements = [match.start() for match in ANSWER.finditer(text)]
    for part in [text[start:] for start in statements[-1:]] + [text]:
        named = _choices_named(part, texts)
        if len(named) == 1:
            return float(named == {right})
    return 0.0


def math_verify(text: str, answer: str) -> float:
    r"""The text's final expression is mathematically equal to the answer, as math-verify judges it.

    >>> math_verify(r"so $x = \frac{2}{4}$", "1/2")
    1.0
    """
    return exact(text, answer) or judge("math_verify", [], [answer, text[-MATH_CHARACTERS:]])


REWARDS: dict[str, Callable[..., float]] = {
    "exact": exact,
    "last_word": last_word,
    "last_number": last_number,
    "choice": choice,
    "math_verify": math_verify,
}

EDGES = string.punctuation + string.whitespace + "“”‘’«»…"


def find_word(text: str) -> str:
    """The last word of a text without the punctuation around it, or "".

    >>> find_word('They call it "home".')
    'home'
    """
    words = text.rstrip(EDGES).rsplit(maxsplit=1)
    return words[-1].strip(EDGES) if words else ""


def _value(number: str) -> Fraction | None:
    try:
        parts = [Decimal(part) for part in number.split("/")]
        # A Fraction writes out all digits of 1e999999999.
        if len(number) > 1000 or any(abs(part.adjusted()) > 1000 for part in parts):
            return None
        over, *under = map(Fraction, parts)
        return over / under[0] if under else over
    except ArithmeticError:
        return None


ANSWER = re.compile(r"\banswer\b (?= \s{0,9} (?: : | is\b ))", re.IGNORECASE | re.VERBOSE)
LABEL = re.compile(
    r"""
      (?m: ^ ) [ \t]* [(\[<{*_"'`]{0,4} ([A-Za-z]) # a line that opens with "B", "b)", "**B**"
      (?= [ \t]* (?: [)\].:,>}*_"'`] | (?m: $ ) ) )
    | (?<! \w ) [(\[<] ([A-Za-z]) [)\]>]                                       # "(B)" anywhere
    | \b ([A-Z]) \b (?= \s+ (?: (?: or | and ) \s+ [A-Z] \b | is \s+ (?: right | correct ) ) )
    | \*\* \(? ([A-Z]) [).:]? \*\*
    | \b (?i: answer | option | choice | boxed | or | and | is ) \b \W{1,6} (?: text \W )?
      ([A-Z] \b (?! ['’] ) | [a-z] (?= \W* \Z ))
    | \b (?i: but | it['’]s ) \W{1,6} ([A-Z]) \b (?! ['’] )                     # "not A but B"
    """,
    re.VERBOSE,
)
NOT = (
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\bneither|\bnor|\brather\s+than|\binstead\s+of"
    r"|\b(?:anything|everything|all)\s+but)\s+(?:be\s+)?(?:(?:the\s+)?(?:option|choice|answer)\s+)?"
)
LETTER = r"[(\[<*]{0,3}(?-i:[A-Z])\b[)\]>*]{0,3}"
WRONG = r"\s+(?:is|are|was)\s*(?:n['’]t|not|wrong|incorrect|false|out)\b"
REASON = re.compile(r",?\s*\b(?:because|since)\b[^\n]*", re.IGNORECASE)


def _choices_named(text: str, texts: Sequence[str]) -> set[int]:
    """The indices of all choices that a text names, by letter or by words; not those that it says no to."""
    named = set()
    # The longest first, so that "New York" does not also name "York".
    words = "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True) if t) or r"(?!)"
    refused = rf"{NOT}(?:{LETTER}|(?:{words})(?!\w))|(?<!\w)(?:{LETTER}|(?:{words}))(?:{WRONG})"
    text = re.sub(refused, " ", REASON.sub("", text), flags=re.IGNORECASE)
    # Where a choice is itself a letter ("which letter comes next?"), letters are not labels.
    if not any(len(t) == 1 and t.isalpha() for t in texts):
        labels = {_index(next(filter(None, match.groups()))) for match in LABEL.finditer(text)}
        named = {label for label in labels if label < len(texts) or not texts}
    if texts:
        found = re.findall(rf"(?<!\w)(?<!\d\.)(?:{words})(?!\w|\.\d)", _plain(text))
        named |= {texts.index(t) for t in found}
    return named


def _index(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _plain(text: str) -> str:
    text = " ".join(text.casefold().split())
    return text.rstrip(".,;:!? ") or text
