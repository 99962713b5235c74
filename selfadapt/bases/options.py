"""The options with which a base is loaded: what is wrong with them, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from experts.outside.errors import UserError, short, unknown

if TYPE_CHECKING:
    import torch


def check_options(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError for an option that is not known, or whose value transformers would stumble over."""
    kinds = {"attn_implementation": str, "trust_remote_code": bool, "chat_template_kwargs": Mapping}
    for option, value in options.items():
        if option not in known:
            raise unknown("option of load_base", option, known)
        if option in kinds and not isinstance(value, kinds[option]):
            kind = {str: "a string", bool: "True or False", Mapping: "a mapping"}[kinds[option]]
            raise UserError(f"{option} must be {kind}, not {short(value)}")
    places = options.get("device_map")
    if "meta" in (places.values() if isinstance(places, Mapping) else [places]):
        raise UserError("device_map names the meta device, which holds no weights; choose cpu or an accelerator")


def device_of(device: torch.device | str | None) -> torch.device:
    import torch

    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    if found.type == "meta":
        raise UserError("device 'meta' holds no weights; choose cpu or an accelerator")
    return found


def dtype_of(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    import torch

    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype == "auto":
        return dtype
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    # Bases are neither kept nor run in 8-bit floats, which only quantised checkpoints hold.
    if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < 2:
        name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else str(dtype)
        raise unknown("dtype", name, ["auto", "float32", "bfloat16", "float16"])
    return named


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".: ")
