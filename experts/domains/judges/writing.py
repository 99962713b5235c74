"""What surrounds an answer in a model's text: thoughts, special tokens, tags, boxes."""

from __future__ import annotations

import re

# </s>, <|im_end|>, <answer>, </b>
TAG = re.compile(r"<\|\w{1,40}\|>|</?[A-Za-z][\w-]{0,40}/?>")
CLOSING_LETTER = re.compile(r"</([A-Za-z])>")
# The end of a model's thoughts; some templates begin the thoughts themselves, so that the text only has their end.
THOUGHT = re.compile(r"</(?:think(?:ing)?|reasoning|thoughts?)>|\[/THINK\]", re.IGNORECASE)
# Between the boxes of one answer: "$\boxed{7}$ or $\boxed{8}$".
BETWEEN = re.compile(r"[$\s]*(?:[,;]|,?\s?(?:\\text\s?\{\s*)?\b(?:or|and)\b(?:\s*\})?)[$\s]*")
BOX = r"\boxed{"
SUPERSCRIPTS = re.compile(r"[⁰¹²³⁴-⁹⁻]+")
DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def answered(text: str) -> str:
    """The part of a text after its thoughts.

    >>> answered("<think>7? No.</think>8"), answered("7")
    ('8', '7')
    """
    return THOUGHT.split(text)[-1]


def raised(text: str) -> str:
    """The text with `^{3}` for `³`.

    >>> raised("x³ cm⁻²")
    'x^{3} cm^{-2}'
    """
    return SUPERSCRIPTS.sub(lambda digits: f"^{{{digits[0].translate(DIGITS)}}}", text)


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
