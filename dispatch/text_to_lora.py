"""Dispatch to experts that do not exist yet: a network writes them from descriptions (experts.text_to_lora)."""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, cast

import torch
from torch import Tensor

from dispatch.base import Dispatcher, question
from experts.engine import Engine, NativeEngine
from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import Chat
from experts.outside.errors import UserError
from experts.svf.fingerprint import other_base
from experts.text_to_lora.encoder import BASE, LastTokenEncoder, SentenceEncoder, TaskEncoder
from experts.text_to_lora.writer import TextToAdapter, read_network

Describe = Callable[[Sequence[str | Chat]], list[str | None]]
"""What each prompt's expert is written from; None leaves the prompt to the base."""
PREFIX = "t2l-"  # of the names of written experts


def by_description(description: str) -> Describe:
    """The same description for all prompts, given by the caller."""
    return lambda prompts: [description] * len(prompts)


def by_prompt(prompts: Sequence[str | Chat]) -> list[str | None]:
    """Each prompt describes its own task."""
    return [question(prompt).strip() or None for prompt in prompts]


def by_domain(dispatcher: Dispatcher, descriptions: Mapping[str, str]) -> Describe:
    """The description of the expert that another dispatcher prefers; None where it abstains.

    Args:
        descriptions: expert → the sentence about its domain.
    """

    def describe(prompts: Sequence[str | Chat]) -> list[str | None]:
        mixture = dispatcher(prompts)
        chosen = [mixture[row] for row in range(len(mixture))]
        return [descriptions[max(weights, key=weights.__getitem__)] if weights else None for weights in chosen]

    return describe


class T2LDispatcher:
    """Writes an expert for every description and asks the engine to carry it, so that a mixture can name it.

    Written experts are named `t2l-` plus a hash of network and description, and can stand in a mixture beside trained
    ones. The engine keeps those that existing mixtures name, and as many others as make `kept` in all; the least
    recently used are dropped.

    Args:
        writer: a network that writes SVF experts, or LoRAs, for the engine's base.
        engine: carries the written experts beside those of its library.
        describe: prompts → descriptions.
        beside: a dispatcher of trained experts to mix with; None uses written ones alone.
        share: the share of a prompt's weights that a written expert gets where `beside` chooses experts too.
        kept: how many written experts the engine keeps.

    Raises:
        UserError: if the network writes for another base.
    """

    def __init__(
        self,
        writer: TextToAdapter,
        engine: Engine,
        describe: Describe = by_prompt,
        *,
        beside: Dispatcher | None = None,
        share: float = 0.5,
        kept: int = 64,
    ) -> None:
        spec = writer.network.spec
        if spec.fingerprint is not None and spec.fingerprint != (found := engine.fingerprint):
            raise other_base("the network", spec.fingerprint, found)
        if not 0 <= share <= 1:
            raise UserError(f"share must be between 0 and 1, not {share}")
        self.writer = writer
        self.engine = engine
        self.describe = describe
        self.beside = beside
        self.share = share
        self.kept = kept
        self._network = hashlib.sha256(
            b"".join(bytes(p.detach().cpu().numpy().data) for p in writer.network.parameters())
        ).digest()
        self._carried: OrderedDict[str, None] = OrderedDict()  # names, the most recently used last
        self._in_use: Counter[str] = Counter()  # name → how many existing mixtures have it
        self._carrying = RLock()  # a mixture may be collected, and released, wherever memory is allocated

    @classmethod
    def from_pretrained(
        cls, network: str | Path, engine: Engine, describe: Describe = by_prompt, **options: Any
    ) -> T2LDispatcher:
        """Reads a network that `selfadapt t2l train` wrote.

        Args:
            options: `beside`, `share` and `kept`.

        Raises:
            UserError: if the folder holds no network, the network writes for another base, or it reads with the base
                and the engine does not let it.
        """
        network = Path(network)
        read = read_network(network)
        encoder: TaskEncoder
        if read.spec.encoder != BASE:
            encoder = SentenceEncoder(read.spec.encoder)
        elif isinstance(engine, NativeEngine):
            encoder = LastTokenEncoder(engine.model, cast(Any, engine.tokenizer))
        else:
            raise UserError(
                f"the network in {network} reads descriptions with the base, which only the native engine allows; "
                "use that engine"
            )
        return cls(TextToAdapter(read, encoder), engine, describe, **options)

    @classmethod
    def from_library(cls, library: ExpertLibrary, engine: Engine) -> T2LDispatcher:
        """Uses the network in the library."""
        return cls.from_pretrained(network_path(library), engine)

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        trained = None if self.beside is None else self.beside(prompts)
        descriptions = self.describe(prompts)
        texts = list(dict.fromkeys(text for text in descriptions if text is not None))
        names = self._carry(texts)
        written = torch.tensor([[float(text == own) for own in texts] for text in descriptions])
        written = written.view(len(prompts), len(texts))  # [B, written experts]
        mixture = Mixture(tuple(names), written)
        if trained is not None:
            mixture = _side_by_side(mixture, trained, self.share)
        weakref.finalize(mixture, self._release, names).atexit = False
        return mixture

    def _carry(self, texts: Sequence[str]) -> list[str]:
        """The names of these descriptions' experts, which the engine carries until they are released."""
        names = [PREFIX + hashlib.sha256(self._network + text.encode()).hexdigest()[:12] for text in texts]
        with self._carrying:
            missing = [row for row, name in enumerate(names) if name not in self.engine.experts]
            if missing:
                written: list[Expert | Lora] = [*self.writer.generate([texts[row] for row in missing])]
                for row, adapter in zip(missing, written, strict=True):
                    self.engine.carry(names[row], adapter)
            self._in_use.update(names)
            for name in names:
                self._carried[name] = None
                self._carried.move_to_end(name)
            unused = [name for name in self._carried if not self._in_use[name]]
            for name in unused[: max(0, len(self._carried) - self.kept)]:
                del self._carried[name]
                if name in self.engine.experts:  # another dispatcher may have let it go
                    self.engine.drop(name)
        return names

    def _release(self, names: Sequence[str]) -> None:
        with self._carrying:
            self._in_use -= Counter(names)


def _side_by_side(written: Mixture, trained: Mixture, share: float) -> Mixture:
    """Both mixtures as one; written experts get `share` of a prompt's weights where trained ones have some too."""
    has_written, has_trained = (weights.any(1, keepdim=True) for weights in (written.weights, trained.weights))
    share_of = torch.where(has_trained, share, 1.0) * has_written  # [B, 1]

    def beside(weights: Tensor) -> Tensor:
        return torch.cat([share_of * written.weights, (1 - share_of) * weights], 1)

    own = {matrix: beside(weights) for matrix, weights in trained.per_matrix.items()}
    return Mixture((*written.names, *trained.names), beside(trained.weights), own, trained.confidence)


def network_path(library: ExpertLibrary) -> Path:
    """The folder in a library of the network that writes experts."""
    return library.folder / "t2l"


def check_network(library: ExpertLibrary) -> None:
    """Raises UserError if a library has no network that writes experts."""
    if not (path := network_path(library)).is_dir():
        raise UserError(
            f"the library {library.folder} has no network that writes experts: train one with `selfadapt t2l train`, "
            f"and put it into a library of your own as {path.name}/"
        )
