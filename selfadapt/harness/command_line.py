"""Reads lm-eval's own options as its command line does, and says in one line what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval._cli.utils import key_val_to_dict, try_parse_json

from experts.outside.errors import UserError
from experts.outside.reading import read_text

YES, NO = ("true", "1", "yes"), ("false", "0", "no")


def pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` pairs with commas or spaces between, or one JSON object.

    Raises:
        UserError: if it is neither.
    """
    found: dict[str, Any] = {}
    for each in given:
        try:
            whole = try_parse_json(each)
            found |= whole if isinstance(whole, dict) else key_val_to_dict(each)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from error
    return found


def merged(option: str, given: Mapping[str, Any], named: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The keys that an option gives, and those that other options give by their names.

    Args:
        named: key → the option that gives the same, and its value; None if it is not given.

    Raises:
        UserError: if both give a key.
    """
    for key, (own, value) in named.items():
        if value is not None and key in given:
            raise UserError(f"{own} and {key} in {option} set the same thing; give only one of them")
    return {**given, **{key: value for key, (_, value) in named.items() if value is not None}}


def multiturn(given: Sequence[str] | None, apply_chat_template: bool) -> bool:
    """Reads `--fewshot-as-multiturn`, alone or with true or false; by default it is what `apply_chat_template` is.

    Raises:
        UserError: if it is neither, or true without a chat template.
    """
    if given is None:
        return apply_chat_template
    said = given[0].lower() if given else YES[0]
    if len(given) > 1 or said not in (*YES, *NO):
        raise UserError(f"--fewshot-as-multiturn must be true or false, not {' '.join(given)!r}")
    if said in YES and not apply_chat_template:
        raise UserError("--fewshot-as-multiturn is for chats: give --apply-chat-template too")
    return said in YES


def sample_numbers(given: str) -> dict[str, list[int]]:
    """Reads `--samples`, JSON or a file that holds it: task → which of its documents, counted from 0.

    Raises:
        UserError: if it is something else.
    """
    text = given if given.lstrip().startswith("{") else read_text(Path(given))
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UserError(f"--samples is not JSON: {error}") from error
    whole = isinstance(document, dict) and all(
        isinstance(numbers, list) and numbers and all(type(number) is int and number >= 0 for number in numbers)
        for numbers in document.values()
    )
    if not whole:
        raise UserError('--samples must list the documents of each task, as in {"arc_easy": [0, 1, 5]}')
    return {task: sorted({*numbers}) for task, numbers in document.items()}
