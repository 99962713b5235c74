"""Dispatch by sentence embeddings: the nearest expert, or the base where none is near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.optimize import minimize_scalar
from torch import Tensor

from dispatch.base import Considered, question
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import Chat
from experts.outside.errors import UserError
from experts.outside.files import atomic_file
from experts.text_to_lora.encoder import BUILT_IN, encode

FILE = "prompt_embeddings.safetensors"  # beside an expert's z: vectors of training prompts, never their text
PROMPTS = 128  # enough: 64 give the same centroid to within a degree
UNRELATED = 0.25  # cosine below which texts have little in common; used where no training prompts are stored


class EmbeddingDispatcher:
    """Chooses the expert with the nearest centroid, by the cosine of sentence embeddings.

    An expert's centroid is the mean embedding of its training prompts and its description, or its description alone if
    no prompts are stored. Probabilities are a softmax over cosines, with the temperature that makes the stored prompts
    most likely, each prompt left out of its own centroid. A prompt goes to the base if its best cosine is below the
    `false_alarms` quantile of the stored prompts' best cosines.

    Args:
        names: K experts.
        descriptions: [K, d], unit vectors.
        prompts: for each expert the unit vectors of its training prompts [n_k, d]; n_k may be 0.
        encoder: the name of the text encoder.
        false_alarms: the share of prompts in an expert's domain that may go to the base; 0 never abstains.
        soft: whether to mix the experts by their probabilities instead of choosing one.
    """

    def __init__(
        self,
        names: Sequence[str],
        descriptions: Tensor,
        prompts: Sequence[Tensor],
        *,
        encoder: str = BUILT_IN,
        false_alarms: float = 0.02,
        soft: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.encoder = encoder
        self.soft = soft
        sums = torch.stack([own.sum(0) + one for own, one in zip(prompts, descriptions, strict=True)])  # [K, d]
        self.centroids = F.normalize(sums, dim=1)
        cosines, labels = _left_out(sums, prompts)
        self.temperature = _temperature(cosines, labels)
        best = cosines.max(1).values if len(cosines) else torch.tensor([UNRELATED])
        self.threshold = best.quantile(false_alarms).item() if false_alarms > 0 else -1.0

    @classmethod
    def from_library(
        cls, library: ExpertLibrary, *, false_alarms: float = 0.02, soft: bool = False
    ) -> EmbeddingDispatcher:
        """Reads the prompt embeddings stored beside the library's experts.

        Raises:
            UserError: if they are damaged or come from different encoders.
        """
        stored = [read_prompts(library.path(name)) for name in library.names]
        encoder = encoder_of(library)
        vectors = encode([*library.descriptions().values()], encoder)
        prompts = [own if len(own) else vectors[:0] for _, own in stored]
        return cls(library.names, vectors, prompts, encoder=encoder, false_alarms=false_alarms, soft=soft)

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        return self.consider(prompts).decide(self.soft)

    def consider(self, prompts: Sequence[str | Chat]) -> Considered:
        """As `Classifier.consider`; scores are cosines."""
        cosines = encode([question(prompt) for prompt in prompts], self.encoder) @ self.centroids.T  # [B, K]
        return Considered(self.names, (cosines / self.temperature).softmax(1), cosines, self.threshold, "cosine")


def check_described(library: ExpertLibrary) -> None:
    """Raises UserError for an expert known only by its name: no prompt would be near it."""
    for name, description in library.descriptions().items():
        if description == name and not len(read_prompts(library.path(name))[1]):
            raise UserError(
                f"the expert {name!r} has neither a description nor embeddings of training prompts to choose it by"
            )


def write_prompts(folder: Path, prompts: Sequence[str | Chat], encoder: str = BUILT_IN) -> None:
    """Stores the embeddings of an expert's training prompts beside it, in half precision.

    Raises:
        UserError: if the encoder is missing.
    """
    write_vectors(folder, embed_prompts(prompts, encoder), encoder)


def embed_prompts(prompts: Sequence[str | Chat], encoder: str = BUILT_IN) -> Tensor:
    """The unit vectors [n, d] of the first `PROMPTS` prompts.

    Raises:
        UserError: if the encoder is missing.
    """
    return encode([question(prompt) for prompt in prompts[:PROMPTS]], encoder)


def write_vectors(folder: Path, vectors: Tensor, encoder: str) -> None:
    """Stores vectors from `embed_prompts` beside an expert."""
    with atomic_file(folder / FILE) as temporary:
        save_file({"embeddings": vectors.half()}, temporary, metadata={"encoder": encoder})


def read_prompts(folder: Path) -> tuple[str, Tensor]:
    """The encoder's name and the unit vectors [n, d] of an expert's training prompts; n = 0 where none are stored.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return "", torch.zeros(0, 0)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()["encoder"], F.normalize(file.get_tensor("embeddings").float(), dim=1)
    except (SafetensorError, OSError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and the expert's description is used instead"
        ) from error


def encoder_of(library: ExpertLibrary) -> str:
    """The name of the encoder that embedded the prompts of a library's experts.

    Raises:
        UserError: if the embeddings are damaged or come from different encoders.
    """
    stored = [read_prompts(library.path(name)) for name in library.names]
    encoders = {encoder for encoder, own in stored if len(own)} or {BUILT_IN}
    if len(encoders) > 1:
        raise UserError(
            f"the experts of {library.folder} were embedded by different encoders ({', '.join(sorted(encoders))}); "
            f"remove {FILE} from all but the experts of one encoder"
        )
    return encoders.pop()


def _left_out(sums: Tensor, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines [N, K] of all stored prompts to all centroids, each left out of its own, and their experts [N]."""
    cosines, labels = [], []
    for k, own in enumerate(prompts):
        if len(own):
            others = own @ F.normalize(sums, dim=1).T  # [n_k, K]
            others[:, k] = (own * F.normalize(sums[k] - own, dim=1)).sum(1)
            cosines.append(others)
            labels.append(torch.full((len(own),), k))
    if not cosines:
        return torch.zeros(0, len(prompts)), torch.zeros(0, dtype=torch.long)
    return torch.cat(cosines), torch.cat(labels)


def _temperature(cosines: Tensor, labels: Tensor) -> float:
    """The temperature with the least cross-entropy, between 0.01 and 1 (Guo et al., arXiv 1706.04599)."""
    if not len(labels):
        return 0.1

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(cosines / 10**log_temperature, labels).item()

    return 10 ** float(minimize_scalar(loss, bounds=(-2, 0), method="bounded").x)
