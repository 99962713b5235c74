"""Options that no base can be loaded with: one line, before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experts.outside.errors import UserError
from selfadapt import load_base


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8_e4m3fn"}, "unknown dtype 'float8_e4m3fn'"),
        ({"dtype": torch.float8_e5m2}, "unknown dtype 'float8_e5m2'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": torch.bool}, "unknown dtype 'bool'"),
        ({"dtype": "complex64"}, "unknown dtype 'complex64'"),
        ({"dtype": float}, "unknown dtype"),
        ({"dtype": 16}, "unknown dtype '16'"),
        ({"device": "meta"}, "device 'meta' holds no weights"),
        ({"device_map": "meta"}, "the meta device, which holds no weights"),
        ({"device_map": {"": "cpu", "lm_head": "meta"}}, "the meta device, which holds no weights"),
        ({"device_map": {}}, "cannot load"),
        ({"attn_implementation": 5}, "attn_implementation must be a string, not 5"),
        ({"trust_remote_code": "no"}, "trust_remote_code must be True or False, not 'no'"),
        ({"chat_template_kwargs": ["thinks"]}, "chat_template_kwargs must be a mapping"),
    ],
)
def test_a_value_that_means_nothing_is_one_line(options: dict[str, Any], said: str, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_base(tiny_folder, **options)
    assert "\n" not in str(caught.value)
