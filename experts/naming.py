"""What an expert or a LoRA of a library may be called."""

from __future__ import annotations

import re

from experts.outside.errors import UserError
from experts.svf.names import fault_in_adapter_name

DISPATCHERS = ("none", "prompt", "classifier", "embedding", "t2l", "few-shot")
"""Words that name a dispatcher where an expert's name could stand; `dispatch.table` says what each is."""
AUTO = "auto"
"""Where a model is named, this means whatever the dispatcher chooses."""
RESERVED = {
    **{name: f"--dispatch {name} means something else" for name in DISPATCHERS},
    **dict.fromkeys(("base", "other"), "it stands for the base"),
    AUTO: "it stands for what a dispatcher chooses",
}
"""The names that no expert can have, and why."""

# An expert's name names an adapter in PEFT and a folder on any file system, and is a word of the command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
WINDOWS_DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9]", re.IGNORECASE)


def check_name(name: str) -> None:
    """Raises UserError, with the reason, if no expert of a library can have this name."""
    fault = fault_in_adapter_name(name)
    if fault is None:
        fault = RESERVED.get(name.casefold())
    if fault is None and WINDOWS_DEVICES.fullmatch(name):
        fault = "Windows reserves it for a device"
    if fault is None and not NAME.fullmatch(name):
        fault = "it must have at most 100 letters (A to Z), digits, '-' and '_', and begin with a letter or digit"
    if fault is not None:
        raise UserError(f"{name!r} cannot name an expert: {fault}; choose another name")
