"""What surrounds an answer in a model's text: thoughts, special tokens, tags, boxes; and its characters, made plain."""

from __future__ import annotations

import re
import unicodedata

# </s>, <|im_end|>, <answer>, </b>
TAG = re.compile(r"<\|\w{1,40}\|>|</?[A-Za-z][\w-]{0,40}/?>")
NOTHING = re.compile(rf"(?:\s|{TAG.pattern})*")
CLOSING_LETTER = re.compile(r"</([A-Za-z])>")
# The end of a model's thoughts; some templates begin the thoughts themselves, so that the text only has their end.
THOUGHT = re.compile(r"</(?:think(?:ing)?|reasoning|thoughts?)>|\[/THINK\]", re.IGNORECASE)
BEGUN = re.compile(r"<think(?:ing)?>|\[THINK\]", re.IGNORECASE)
# Where an answer ends and a model goes on by itself: the end of its turn, another question, another's turn.
NEXT_TURN = re.compile(
    r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text)\|>|<end_of_turn>"
    r"|^[ \t*_#>]{0,6}(?:(?:new|next|another) )?(?:question|q|user|human)[*_]{0,2}:",
    re.IGNORECASE | re.MULTILINE,
)
# Between the boxes of one answer: "$\boxed{7}$ or $\boxed{8}$".
BETWEEN = re.compile(r"[$\s]*(?:[,;]|,?\s?(?:\\text\s?\{\s*)?\b(?:or|and)\b(?:\s*\})?)[$\s]*")
BOX = r"\boxed{"
SUPERSCRIPTS = re.compile(r"[⁰¹²³⁴-⁹⁻]+|<sup>([^<>]*)</sup>")
SUBSCRIPTS = re.compile(r"[₀-₉]+|<sub>([^<>]*)</sub>")
DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉", "0123456789-0123456789")
# Characters that are others in another shape (Ｂ, Ⓑ, 𝐁; not ℝ), digits of other scripts, and what cannot be seen.
SHAPED = re.compile(r"[٠-٩۰-۹०-९\u2460-\u24ff\uff01-\uff5e\uffe5\U0001d400-\U0001d7ff\u200b-\u200f\u2060\ufeff]")
SIGNS = str.maketrans({"−": "-", "⁄": "/", "٬": ",", "٫": ".", "\u3000": " "})
CROSSED_OUT = re.compile(r"~~(?=\S)[^~\n]*~~")


def after_thoughts(text: str) -> str:
    """The part of a text after its thoughts; thoughts without an end are followed by nothing.

    >>> after_thoughts("<think>7? No.</think>8"), after_thoughts("7"), after_thoughts("<think>7? No")
    ('8', '7', '')
    """
    return BEGUN.split(THOUGHT.split(text)[-1])[0]


def own_turn(text: str) -> str:
    """The part of a text before it goes on with another question, or as somebody else.

    >>> own_turn("7\\n\\nQuestion: 3 + 5?\\nAnswer: 8").strip(), own_turn("Question: 3 + 4?\\nAnswer: 7")
    ('7', 'Question: 3 + 4?\\nAnswer: 7')
    """
    begins = NOTHING.match(text).end()  # type: ignore[union-attr]
    for turn in NEXT_TURN.finditer(text, begins):
        before = text[begins : turn.start()].rstrip()
        if before and not before.endswith(":"):  # "The question is:"
            return text[: turn.start()]
    return text


def answered(text: str) -> str:
    """The part of a text after its thoughts and before another turn, in plain characters, without what it crosses out.

    >>> answered("<think>7? No.</think>8"), answered("７"), answered("~~7~~ 8")
    ('8', '7', ' 8')
    """
    return CROSSED_OUT.sub("", in_plain_characters(own_turn(after_thoughts(text))))


def in_plain_characters(text: str) -> str:
    """The text with one character for all the ways to encode it; fractions, powers and indices stay as they are.

    >>> in_plain_characters("Ｂ 𝟕 ٧ −5"), in_plain_characters("½ x²")
    ('B 7 7 -5', '½ x²')
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", SHAPED.sub(_plain_character, text).translate(SIGNS))


def _plain_character(match: re.Match[str]) -> str:
    if unicodedata.category(match[0]) == "Cf":
        return ""
    digit = unicodedata.decimal(match[0], None)
    return unicodedata.normalize("NFKC", match[0]) if digit is None else str(digit)


def raised(text: str) -> str:
    """The text with `^{3}` for `³`, and `_{3}` for `₃`.

    >>> raised("x³ cm⁻²"), raised("10<sup>6</sup> a₁₂")
    ('x^{3} cm^{-2}', '10^{6} a_{12}')
    """
    text = SUPERSCRIPTS.sub(lambda digits: f"^{{{digits[1] or digits[0].translate(DIGITS)}}}", text)
    return SUBSCRIPTS.sub(lambda digits: f"_{{{digits[1] or digits[0].translate(DIGITS)}}}", text)


def without_tags(text: str) -> str:
    """The text with a space in place of each special token and tag.

    >>> without_tags("<answer>7</answer><|im_end|>").split()
    ['7']
    """
    # A letter between angle brackets is a choice, "<B>", unless it is closed: "<b>7</b>".
    closed = set(CLOSING_LETTER.findall(text))
    return TAG.sub(lambda tag: tag[0] if len(tag[0]) == 3 and tag[0][1] not in closed else " ", text)


def boxed(text: str) -> str:
    r"""The content of the last `\boxed{}`, if it closes, and of the boxes listed with it; else the whole text.

    >>> boxed(r"so $\boxed{\frac{1}{2}}$."), boxed("so 1/2"), boxed(r"\boxed{5}. No, \boxed{6} or \boxed{7}")
    ('\\frac{1}{2}', 'so 1/2', '6 or 7')
    """
    said: list[str] = []
    rest = text
    while (start := rest.rfind(BOX)) >= 0:
        end = _closes(rest, start + len(BOX))
        if end is None or (said and not BETWEEN.fullmatch(rest[end + 1 :])):
            break
        said.append(rest[start + len(BOX) : end])
        rest = rest[:start]
    return " or ".join(reversed(said)) if said else text


def _closes(text: str, start: int) -> int | None:
    """Where the brace before `start` closes."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return None
