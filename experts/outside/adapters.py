"""A PEFT adapter on disk: a folder with its configuration, its tensors and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import PeftType
from safetensors.torch import save_file
from torch import Tensor

from experts.outside.cards import model_card
from experts.outside.errors import UserError
from experts.outside.reading import read_text

PREFIX = "base_model.model."
"""Precedes a matrix's name in the keys of `adapter_model.safetensors`."""


DESCRIPTION = "description.txt"
"""The file beside a LoRA that says what it is for, in one sentence; PEFT has no field for that."""


def read_description(folder: Path) -> str | None:
    """What a LoRA is for, as its folder says; None if it says nothing.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / DESCRIPTION
    return " ".join(read_text(path).split()) or None if path.is_file() else None


def write_description(folder: Path, description: str) -> None:
    """Writes what a LoRA is for into its folder."""
    (folder / DESCRIPTION).write_text(description + "\n", encoding="utf-8")


def write_adapter(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor], card: str) -> None:
    """Writes an adapter into an existing folder; `PeftModel.from_pretrained` reads it.

    Args:
        tensors: key → tensor; a key is `PREFIX`, the name of a matrix, and the name of the tensor in its layer.
        card: the text of README.md, which gets its front matter here.

    Raises:
        UserError: if a number is NaN or infinite; nobody could read the adapter.
    """
    if odd := next((key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise UserError(f"the adapter cannot be written: {odd.removeprefix(PREFIX)} has a number that is not finite")
    config.save_pretrained(str(folder))
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    tags = [PeftType(config.peft_type).value.lower()]
    text = model_card(card, config.base_model_name_or_path, tags)
    (folder / "README.md").write_text(text, encoding="utf-8")
