"""What the lm-eval model `selfadapt` can be told beside which base it is: arguments of lm-eval's own model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from experts.outside.errors import UserError, check_whole, unknown

# HFLM's other arguments say how to load a model, which `load_base` does here; HFLM would silently ignore them.
OPTIONS = (
    *("add_bos_token", "batch_size", "chat_template_args", "enable_thinking", "logits_cache", "max_batch_size"),
    *("max_length", "mixed_precision_dtype", "prefix_token_id", "softmax_dtype", "think_end_token", "truncation"),
)
SWITCHES = ("add_bos_token", "enable_thinking", "logits_cache", "truncation")
DTYPES = ("mixed_precision_dtype", "softmax_dtype")


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the values of `OPTIONS`, which HFLM takes as they are and stumbles over later; None is not given.

    Raises:
        UserError: for the first that lm-eval would not understand.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name in ("batch_size", "max_batch_size"):
            check_batch_size(name, value)
        elif name == "max_length":
            check_whole(name, value)
        elif name == "prefix_token_id":
            check_whole(name, value, least=0)
        elif name in SWITCHES and not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {value!r}")
        elif name in DTYPES and value != "auto":
            named = getattr(torch, value, None) if isinstance(value, str) else value
            if not isinstance(named, torch.dtype) or not named.is_floating_point:
                raise unknown("dtype", str(value), ["auto", "float32", "bfloat16", "float16"])


def check_batch_size(name: str, value: Any) -> None:
    """Raises UserError for what lm-eval would not understand: it takes a number, "auto", or "auto:4"."""
    known = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not known and not re.fullmatch(r"0*[1-9][0-9]*|auto(:0*[1-9][0-9]*)?", str(value), re.ASCII):
        raise UserError(f'{name} must be a whole number of 1 or more, or "auto", not {value!r}')
