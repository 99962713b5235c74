"""Names of modules in the plain base, names of adapters that PEFT can tell apart, and patterns of names."""

from __future__ import annotations

import re

from torch import nn

from experts.outside.errors import UserError


def plain_name(name: str) -> str:
    """The name of a module or a parameter, without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules, by their plain names."""
    return {plain_name(name): module for name, module in model.named_modules()}


def fault_in_adapter_name(name: str) -> str | None:
    """Why `name` cannot name an adapter; None if it can.

    Parts of a module's path, such as "mlp", can name one (see `SVFModel._get_adapter_state_dict`).
    """
    if not isinstance(name, str) or not name:
        return "it must be a non-empty text"
    if name == "__base__":
        return "it stands for the base among PEFT's adapter_names"
    if "." in name:
        return "the name of a torch module cannot contain a dot"
    if "/" in name or "\\" in name:
        return "an adapter is saved into a folder of its name"
    if hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        return "it is an attribute of torch's modules"
    return None


def check_expression(expression: str) -> None:
    """Raises UserError if `expression` is not a regular expression."""
    try:
        re.compile(expression)
    except re.error as error:
        raise UserError(f"{expression!r} is not a regular expression: {error}") from error
