"""The ready rewards: `(text, answer) -> score`, 1.0 for a right answer and 0.0 for any other text.

They are right about tidy answers and strict with the rest. None of them raises or hangs, whatever the text.
"""

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from experts.domains.judges import judge

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
    (1.0, 1.0)
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


NUMBER = r"""
    (?: (?<! [\w)\]}%] ) [-+−] \$? )?                             # after a digit, a word or a bracket it is an operator
    (?: (?: \d{1,3} (?: , \d{3} )+ (?! \d ) | \d+ ) (?: \. \d+ )?
      | (?<! [\d.] ) \. \d+ )
    (?: [eE] [-+]? \d+ )?
"""
PLAIN_NUMBER = re.compile(NUMBER, re.VERBOSE)
FRACTION = re.compile(NUMBER + r"(?: \s? / \s? \d+ )?", re.VERBOSE)
WRITTEN = str.maketrans({"−": "-", "+": None, ",": None, "$": None, " ": None})


def find_number(text: str, fractions: bool = False) -> str:
    """The last number in a text as Python would write it, or "".

    >>> find_number("from 5 to -$1,234.50."), find_number("3 / 4 cups", fractions=True)
    ('-1234.50', '3/4')
    """
    last = deque((FRACTION if fractions else PLAIN_NUMBER).finditer(text), maxlen=1)
    return last[0][0].translate(WRITTEN) if last else ""


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
      (?m: ^ ) [ \t]* \(? ([A-Za-z]) (?= [ \t]* (?: [).:,] | (?m: $ ) ))      # a line that opens with "B", "b)", "B."
    | (?<! \w ) \( ([A-Za-z]) \)                                              # "(B)" anywhere
    | \b (?i: answer | option | choice | boxed | or | is ) \b \W{1,6}         # "the answer is B", "Option B", "or B"
      ([A-Z] \b | [a-z] (?= \W* \Z ))
    """,
    re.VERBOSE,
)


def _choices_named(text: str, texts: Sequence[str]) -> set[int]:
    """The indices of all choices that a text names, by letter or by words."""
    named = set()
    # Where a choice is itself a letter ("which letter comes next?"), letters are not labels.
    if not any(len(t) == 1 and t.isalpha() for t in texts):
        labels = {_index(next(filter(None, match.groups()))) for match in LABEL.finditer(text)}
        named = {label for label in labels if label < len(texts) or not texts}
    if texts:
        # The longest first, so that "New York" does not also name "York".
        words = "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True) if t)
        found = re.findall(rf"(?<!\w)(?<!\d\.)(?:{words})(?!\w|\.\d)", _plain(text))
        named |= {texts.index(t) for t in found}
    return named


def _index(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _plain(text: str) -> str:
    text = " ".join(text.casefold().split())
    return text.rstrip(".,;:!? ") or text
