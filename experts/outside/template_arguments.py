"""What a base's chat template accepts: which arguments, and which roles beside the usual ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, meta, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from experts.outside.errors import UserError, unknown

OURS = (
    *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation", "max_length"),
    *("tokenizer_kwargs", "processor_kwargs", "bos_token", "eos_token", "unk_token", "pad_token"),
    *("sep_token", "cls_token", "mask_token"),
)
"""The variables that this library or the tokenizer sets with every chat."""


def variables(template: str) -> set[str]:
    """The names that a template reads but does not set itself.

    Raises:
        UserError: if it is not a template.
    """
    parsed = _parsed(template)
    assert parsed.environment is not None
    return meta.find_undeclared_variables(parsed) - {*parsed.environment.globals}


def named_in(template: str | Mapping[str, str] | None, name: str) -> bool:
    """Whether a template, or one of several to choose from, has this name as a string that is not a message's key.

    Raises:
        UserError: if it is not a template.
    """
    for each in [template] if isinstance(template, str) else (template or {}).values():
        parsed = _parsed(each)
        keys = [item.arg for item in parsed.find_all(nodes.Getitem)]
        if any(const.value == name and not any(const is key for key in keys) for const in parsed.find_all(nodes.Const)):
            return True
    return False


def _parsed(template: str) -> nodes.Template:
    try:
        return _compile_jinja_template(template).environment.parse(template)
    except TemplateError as error:
        raise UserError(f"the base's chat template is not valid Jinja: {' '.join(str(error).split())}") from error


def check_arguments(template: str | Mapping[str, str], arguments: Mapping[str, Any]) -> None:
    """Checks arguments for a template, or for several to choose from.

    Raises:
        UserError: for an argument that is set elsewhere or that no template reads, or a value that is not JSON.
    """
    if not arguments:
        return
    templates = [template] if isinstance(template, str) else template.values()
    known = {name for each in templates for name in variables(each)} - {*OURS}
    for name, value in arguments.items():
        if name in OURS:
            raise UserError(f"the chat template's argument {name} is always set; leave it out")
        if name not in known:
            raise UserError(f"the base's chat template does not know the argument {name!r}; {_hint(name, known)}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the chat template's argument {name} must be a JSON value: {type(error).__name__}: {error}"
            ) from error


def _hint(name: str, known: set[str]) -> str:
    return str(unknown("argument", name, known)).partition("; ")[2] if known else "leave it out"
