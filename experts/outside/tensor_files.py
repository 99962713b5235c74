"""Files of tensors that other programs wrote with `torch.save`."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experts.outside.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name and in their order. No code in the file is run.

    Raises:
        UserError: if it is missing, damaged, wants to run code, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that other programs wrote
            document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it wants to run code ({named[1]})" if named else "it wants to run code, or is damaged"
        raise UserError(f"{path} was refused: {what}; only plain tensors are read") from error
    except Exception as error:  # bytes that are not a pickle can make the unpickler raise anything
        raise UserError(f"{path} is not a file of tensors, or it is damaged") from error
    if not isinstance(document, dict) or not all(isinstance(p, Tensor) for p in document.values()):
        raise UserError(f"{path} is not a file of named tensors")
    return {str(key): p.detach() for key, p in document.items()}
