"""A description becomes a vector: any sentence-transformers model, or the base model's own last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.engine.native import context_of, under
from experts.mixture import Mixture
from experts.outside.chats import whole_text
from experts.outside.errors import UserError
from experts.text_to_lora.text_encoder import BUILT_IN, load_encoder

BASE = "base"
"""The name of the base model itself as the encoder of its tasks."""


class TaskEncoder(Protocol):
    """Descriptions in, vectors out."""

    name: str
    size: int

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        """[B, size], float32, each of length √size, without gradient; raises UserError for an empty description."""


def tidy(descriptions: Sequence[str]) -> list[str]:
    """Descriptions without white space around them, each closed by a full stop if it ends in a letter.

    Raises:
        UserError: if there is none, or one is empty or holds half a character.
    """
    if isinstance(descriptions, str):
        raise UserError("descriptions must be a list; put the one description into brackets")
    if not descriptions:
        raise UserError("there is no description; give one or more")
    tidied = [whole_text(text, "a description").strip() for text in descriptions]
    if not all(tidied):
        raise UserError("a description is empty; say in a sentence what the task is")
    return [f"{text}." if text[-1].isalpha() else text for text in tidied]


def rescaled(vectors: Tensor) -> Tensor:
    """Vectors [B, size] with length √size, so that their entries are about 1."""
    return F.normalize(vectors.float(), dim=-1) * vectors.shape[-1] ** 0.5


class SentenceEncoder:
    """Any sentence-transformers model, with the pooling that it comes with.

    Args:
        name: the built-in one, a folder, or a hub id such as the paper's `Alibaba-NLP/gte-large-en-v1.5`.
        trust_remote_code: let a model of the hub run the code that it brings; the paper's needs it.

    Raises:
        UserError: if there is no such encoder, or it cannot be loaded.
    """

    def __init__(self, name: str = BUILT_IN, *, trust_remote_code: bool = False) -> None:
        self.name = name
        self.model = load_encoder(name, trust_remote_code)
        size = self.model.get_embedding_dimension()
        assert size is not None
        self.size = size

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        vectors = self.model.encode(tidy(descriptions), convert_to_tensor=True, show_progress_bar=False, batch_size=64)
        return rescaled(vectors.clone())  # out of inference mode


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
            tidy(descriptions),
            padding=True,
            truncation=True,
            max_length=min(512, context_of(self.model.config) or 512),
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        with under(self.model, Mixture.of({})):
            states = base.base_model(**batch, position_ids=positions)
        return rescaled(states.last_hidden_state[:, -1])
