"""What an expert, or a LoRA, of a library may be called."""

from __future__ import annotations

import re
from importlib import import_module

from experts.outside.errors import UserError
from experts.svf.names import fault_in_adapter_name

# Who chooses among experts by their names reads some names otherwise, and says itself which: `RESERVED_NAMES`, name →
# why no expert can have it. It stands above this package, and need not have been imported when an expert is added.
CHOOSER = "dispatch"

# An expert's name is an adapter's in PEFT, a folder's on any file system, and a word of the command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
WINDOWS_DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9]", re.IGNORECASE)


def check_name(name: str) -> None:
    """Raises UserError, with the reason, if no expert of a library can have this name."""
    fault = fault_in_adapter_name(name)
    if fault is None:
        fault = import_module(CHOOSER).RESERVED_NAMES.get(name.casefold())
    if fault is None and WINDOWS_DEVICES.fullmatch(name):
        fault = "Windows keeps it for a device"
    if fault is None and not NAME.fullmatch(name):
        fault = "it must have at most 100 letters from A to Z, digits, '-' and '_', a letter or digit first"
    if fault is not None:
        raise UserError(f"{name!r} cannot name an expert: {fault}; choose another name")
