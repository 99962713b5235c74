"""The ready rewards: `(text, answer) -> score`, 1.0 for a right answer and 0.0 for any other text.

They are right about tidy answers and strict about the rest. None of them raises or hangs, whatever the text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from experts.domains.judges.bounded import judge
from experts.domains.judges.brackets import arrangement, point
from experts.domains.judges.choices import choices_named
from experts.domains.judges.expressions import (
    DELIMITED,
    DENIED,
    LAST,
    REJECTED,
    after_lead,
    breaks_off,
    final_expression,
    last_paragraph,
)
from experts.domains.judges.final_numbers import find_number, without_reason
from experts.domains.judges.latex import as_latex
from experts.domains.judges.relations import is_unsolved, relations, union
from experts.domains.judges.units import thing
from experts.domains.judges.writing import BOX, answered, boxed, in_plain_characters, raised, without_tags

# math-verify only reads the end of a text, where the answer is.
MATH_CHARACTERS = 2000
EITHER = re.compile(r"=[^=\n]*\bor\b[^=\n]*=[^=\n]*\Z")  # "x = 2 or y = 3" is not a point
INTERVAL = re.compile(r"[(\[].*,.*[)\]]|\\(?:mathbb|cup|emptyset)")
ARTICLE = re.compile(r"\A(?:an?|the)\s")
HOUR = re.compile(r"(?<=\d)\s*([ap])\.?\s?m\b\.?", re.IGNORECASE)
BASE = re.compile(r"(?<=\w)_\{?(\d+)\}?\s*\Z")


def exact(text: str, answer: str) -> float:
    """Whether the text is the answer, but for case, white space and trailing punctuation.

    >>> exact(" New  york. ", "New York")
    1.0
    """
    return float(_plain(answered(text)) == _plain(answer))


def last_word(text: str, answer: str) -> float:
    """Whether the last word of the text is the answer, but for case and the punctuation around it.

    The word does not count if the text rejects it, leaves it open, or asks.

    >>> last_word("It must be a **cat**.", "cat"), last_word("not a cat", "cat"), last_word("dog or cat", "cat")
    (1.0, 0.0, 0.0)
    """
    word = find_word(text).casefold()
    return float(word != "" and word == answer.strip(EDGES).casefold())


def last_number(text: str, answer: str) -> float:
    """Whether the number that the text gives as its answer, as a rule the last one, exactly equals the right one.

    Fractions are read unless the right one is whole.

    >>> last_number("That makes $1,234.50.", "1234.5"), last_number("x = −7", "-7"), last_number("8 - 4", "4")
    (1.0, 1.0, 0.0)
    >>> last_number("6/8 of it", "3/4"), last_number("14/2", "2")
    (1.0, 0.0)
    """
    right = _value(find_number(answer, fractions=True))
    given = _value(find_number(text, fractions=right is not None and right.denominator > 1))
    return float(given is not None and given == right)


def choice(text: str, answer: str, choices: Sequence[str] = ()) -> float:
    """Whether the text names only the right choice, by letter or by words; a final "answer: …" has the last say.

    Args:
        text: What the model wrote.
        answer: The right choice, as a letter or as one of `choices`.
        choices: The texts of choices A, B, …; without them only letters count.

    >>> choice("The answer is (B).", "B"), choice("Lyon, no, Paris. Answer: Paris", "A", ["Paris", "Lyon"])
    (1.0, 1.0)
    >>> choice("Paris or Lyon", "A", ["Paris", "Lyon"])
    0.0
    """
    texts = [_plain(text) for text in choices]
    label = re.fullmatch(r"\W*([A-Za-z])\W*", answer)
    if _plain(answer) in texts:
        right = texts.index(_plain(answer))
    elif label:
        right = ord(label[1].upper()) - ord("A")
    else:
        return 0.0
    # A choice that is a question keeps its mark, which then asks nothing.
    questions = [
        f"{plain}?" if re.search(r"\w\W*\?\s*\Z", each) else plain for plain, each in zip(texts, choices, strict=True)
    ]
    return float(choices_named(text, questions) == {right})


def math_verify(text: str, answer: str) -> float:
    r"""Whether the text's final expression is mathematically equal to the answer, as math-verify judges it.

    >>> math_verify(r"so $x = \frac{2}{4}$", "1/2")
    1.0
    """
    text = as_latex(raised(without_tags(answered(text)[-MATH_CHARACTERS:])))
    answer = as_latex(raised(in_plain_characters(answer)))
    if BOX not in text:
        text = without_reason(text)
        if breaks_off(text):
            return 0.0
    text = REJECTED.sub("", text)
    if DENIED.search(text):
        return 0.0
    # math-verify passes over the base of a number. An answer without one is in the base that was asked for.
    given, right = (BASE.findall(boxed(each)) for each in (text, answer))
    if given and given != (right or ["10"]):
        return 0.0
    if _closed_up(text) == _closed_up(answer):
        return 1.0
    if LATEX_WORD.fullmatch(answer.strip()):
        return _says_word(text, LATEX_WORD.sub(r"\1", answer).strip(EDGES))
    expression = union(final_expression(text))
    if _is_another(text, expression, answer):
        return 0.0
    points = [point(each) or (each if arrangement(each) == "order" else None) for each in (answer, expression)]
    if all(points) and points != [answer, expression]:
        return 0.0 if EITHER.search(text) else judge("math_verify", [], [f"${each}$" for each in points])
    if expression:
        text, answer = f"${_both_signs(expression)}$", _both_signs(answer)
    else:
        text = last_paragraph(text)
        if (last := LAST.search(text)) and _is_another(text, last[1], answer):
            return 0.0
        text = text if DELIMITED.search(text) else find_number(text, fractions=True)
    return judge("math_verify", [], [answer, text])


REWARDS: dict[str, Callable[..., float]] = {
    "exact": exact,
    "last_word": last_word,
    "last_number": last_number,
    "choice": choice,
    "math_verify": math_verify,
}

# Not + - % #, which belong to -5, 50% and C#.
EDGES = "".join(sorted(set(string.punctuation) - set("+-%#"))) + string.whitespace + "“”‘’«»…—–"
LATEX_WORD = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s?\{([^{}]*)\}")
# What comes before a word that is not chosen: "no cat", "dog or a cat", "the opposite of cat".
NOT_CHOSEN = re.compile(
    r"""
    (?: [&+|;]
      | \A\W* (?! (?:so|yes|no|ok|okay|sure|well|hmm|thus|hence|finally|therefore)\b ) (?:\w+,\s){0,9} \w+,
      | \b(?: vs\.? | versus | far\s+from | wrong: | incorrect: | not | or | and | nor | no | never | than | but
          | except | without | unlike | instead\s+of | opposite\s+of)
      | n['’]t | \bcannot )
    (?: \s+(?:be | an? | the | maybe | perhaps | rather)\b ){0,3} [\W_]{1,6} \Z | \w/ \Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
BEFORE = 60  # characters before the last word that are looked at
WORD_TAIL = 400  # characters in which a word is looked for


def find_word(text: str) -> str:
    """The last word of a text without the punctuation around it, or "" if the text rejects it, leaves it open or asks.

    >>> find_word('They call it "home".'), find_word("Answer:home"), find_word("Is it home?")
    ('home', 'home', '')
    """
    text = without_tags(LATEX_WORD.sub(r"\1", boxed(answered(text))[-WORD_TAIL:]))
    asks = "?" in text[len(text.rstrip(EDGES)) :]
    words = re.sub(r"(?<=[^\W\d]):(?=\S)", ": ", text.rstrip(EDGES)).rsplit(maxsplit=1)
    word = words[-1].strip(EDGES) if words else ""
    before = text[: text.rfind(word)]
    if (asks and len(words) > 1) or NOT_CHOSEN.search(before[-BEFORE:]):
        return ""
    return word


def _value(number: str) -> Fraction | None:
    try:
        parts = [Decimal(part) for part in number.split("/")]
        # A Fraction would write out all digits of 1e999999999.
        if len(number) > 1000 or any(abs(part.adjusted()) > 1000 for part in parts):
            return None
        over, *under = map(Fraction, parts)
        return over / under[0] if under else over
    except ArithmeticError:
        return None


def _says_word(text: str, word: str) -> float:
    """Whether the text, or what its last line leads to, is only these words, in any order if they are a list."""
    said = LATEX_WORD.sub(r"\1", boxed(text)).strip(EDGES)
    return float(_words(word) in (_words(said), _words(after_lead(said))))


def _words(text: str) -> frozenset[str]:
    listed = re.split(r",\s*(?:and\s)?|\s(?:and|&)\s", _plain(text).strip(EDGES))
    return frozenset(ARTICLE.sub("", word.strip(EDGES)) for word in listed)


def _is_another(text: str, expression: str, answer: str) -> bool:
    """Whether the two differ in what math-verify ignores: their units, their order, or what they say of the unknown."""
    units = {thing(boxed(text)), thing(answer)} - {None}
    if len(units) > 1 or {arrangement(expression), arrangement(answer)} == {"order", "set"}:
        return True
    if relations(expression) and not (relations(answer) or INTERVAL.search(answer)):
        return True
    return is_unsolved(expression) and "=" not in answer


def _both_signs(expression: str) -> str:
    r"""The two values of an expression with one `\pm`."""
    before, sign, after = expression.partition(r"\pm")
    if not sign or r"\pm" in after or "," in expression or "=" in after:
        return expression
    return f"{before}+{after}, {before}-{after}"


def _closed_up(text: str) -> str:
    """An expression without meaningless spaces and full stop: `6 - 5i.` becomes `6-5i`, `1 2` does not become `12`."""
    text = HOUR.sub(lambda hour: f"{hour[1].lower()}m", LATEX_WORD.sub(r"\1", text))
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text).rstrip(".")


def _plain(text: str) -> str:
    text = " ".join(in_plain_characters(text).casefold().split())
    return text.rstrip(".,;:!? ") or text
