"""What surrounds an answer in a model's text: special tokens, tags, boxes."""

from __future__ import annotations

import re

# </s>, <|im_end|>, <answer>, </b>
TAG = re.compile(r"<\|\w{1,40}\|>|</?[A-Za-z][\w-]{0,40}/?>")
CLOSING_LETTER = re.compile(r"</([A-Za-z])>")


def without_tags(text: str) -> str:
    """The text with a space in place of each special token and tag.

    >>> without_tags("<answer>7</answer><|im_end|>").split()
    ['7']
    """
    # A letter between angle brackets is a choice, "<B>", unless it is closed: "<b>7</b>".
    closed = set(CLOSING_LETTER.findall(text))
    return TAG.sub(lambda tag: tag[0] if len(tag[0]) == 3 and tag[0][1] not in closed else " ", text)


def boxed(text: str) -> str:
    r"""What stands in the last `\boxed{}` that closes; the whole text where there is none.

    >>> boxed(r"so $\boxed{\frac{1}{2}}$."), boxed("so 1/2")
    ('\\frac{1}{2}', 'so 1/2')
    """
    opening = r"\boxed{"
    start = text.rfind(opening) + len(opening)
    depth = 1
    for index in range(start, len(text)) if opening in text else ():
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start:index]
    return text
