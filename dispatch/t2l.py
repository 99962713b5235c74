"""Dispatch to experts that do not exist yet: a network writes them from descriptions (experts.text_to_lora)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch.base import Dispatcher, question
from experts.engine import Chat
from experts.errors import UserError
from experts.expert import Expert
from experts.fingerprint import fingerprint
from experts.mixture import Mixture
from experts.svf import SVFLinear
from experts.text_to_lora.encoder import BASE, LastTokenEncoder, SentenceEncoder
from experts.text_to_lora.network import Svf
from experts.text_to_lora.writer import TextToAdapter, read_network

Describe = Callable[[Sequence[str | Chat]], list[str | None]]
"""What each prompt's expert is written from; None leaves the prompt to the base."""
PREFIX = "t2l-"  # of the names of written experts


def told(description: str) -> Describe:
    """The same description for all prompts, from whoever asks."""
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
    """Writes an expert for every description and puts it into the model, where a mixture can name it.

    Written experts are called `t2l-` and a hash of network and description, and can stand in a mixture beside trained
    ones. The model carries at most `kept` of them, and for one call as many as it needs; those used least recently go.

    Args:
        writer: a network that writes SVF experts for the base of `model`.
        model: carries the written experts beside those of its library; see `with_room`.
        describe: prompts → descriptions.
        beside: a dispatcher of trained experts to mix with; None uses written ones alone.
        share: what a written expert gets of a prompt's weights where `beside` has a say.
        kept: how many written experts the model keeps.

    Raises:
        UserError: if the network writes LoRAs, or experts for another base.
    """

    def __init__(
        self,
        writer: TextToAdapter,
        model: PeftModel,
        describe: Describe = by_prompt,
        *,
        beside: Dispatcher | None = None,
        share: float = 0.5,
        kept: int = 64,
    ) -> None:
        spec = writer.network.spec
        if not isinstance(spec.output, Svf):
            raise UserError(
                "the network writes LoRAs, which are not experts and do not mix; "
                "write one with `selfadapt t2l generate`, and load it with PEFT"
            )
        if spec.fingerprint is not None and (found := fingerprint(model)) != spec.fingerprint:
            raise UserError(
                f"the network writes experts for a base with fingerprint {spec.fingerprint}, this one has {found}"
            )
        if not 0 <= share <= 1:
            raise UserError(f"share must be between 0 and 1, not {share}")
        self.writer = writer
        self.model = model
        self.describe = describe
        self.beside = beside
        self.share = share
        self.kept = kept
        self._network = hashlib.sha256(
            b"".join(bytes(p.detach().cpu().numpy().data) for p in writer.network.parameters())
        ).digest()
        self._carried: OrderedDict[str, None] = OrderedDict()  # names, the one used last at the end

    @classmethod
    def from_pretrained(
        cls,
        network: Path,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        describe: Describe = by_prompt,
        **options: Any,
    ) -> T2LDispatcher:
        """Reads a network that `selfadapt t2l train` wrote. Its `model` is then the one to answer with.

        Args:
            model: a base, or one that carries a library's experts.
            options: `beside`, `share` and `kept`.

        Raises:
            UserError: if the folder holds no network, or not one that writes experts for this base.
        """
        read = read_network(network)
        encoder = (
            LastTokenEncoder(model, tokenizer) if read.spec.encoder == BASE else SentenceEncoder(read.spec.encoder)
        )
        writer = TextToAdapter(read, encoder)
        return cls(writer, with_room(model, writer), describe, **options)

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        descriptions = self.describe(prompts)
        texts = list(dict.fromkeys(text for text in descriptions if text is not None))
        names = self._carry(texts)
        written = torch.tensor([[float(text == own) for own in texts] for text in descriptions])
        written = written.view(len(prompts), len(texts))  # [B, written experts]
        if self.beside is None:
            return Mixture(tuple(names), written)
        trained = self.beside(prompts)
        has_written, has_trained = written.any(1, keepdim=True), trained.weights.any(1, keepdim=True)
        share = torch.where(has_trained, self.share, 1.0) * has_written  # [B, 1]

        def beside(weights: Tensor) -> Tensor:
            return torch.cat([share * written, (1 - share) * weights], 1)

        own = {matrix: beside(weights) for matrix, weights in trained.per_matrix.items()}
        return Mixture((*names, *trained.names), beside(trained.weights), own, trained.confidence)

    def _carry(self, texts: Sequence[str]) -> list[str]:
        """The names of the experts of these descriptions, which the model carries from now on."""
        names = [PREFIX + hashlib.sha256(self._network + text.encode()).hexdigest()[:12] for text in texts]
        missing = [row for row, name in enumerate(names) if name not in self.model.peft_config]
        if missing:
            experts = self.writer.generate([texts[row] for row in missing])
            for row, expert in zip(missing, experts, strict=True):
                assert isinstance(expert, Expert)
                attach(self.model, names[row], expert)
        for name in names:
            self._carried[name] = None
            self._carried.move_to_end(name)
        while len(self._carried) > max(self.kept, len(names)):
            name = self._carried.popitem(last=False)[0]
            if name in self.model.peft_config:  # another dispatcher may have let it go
                self.model.delete_adapter(name)
        return names


def attach(model: PeftModel, name: str, expert: Expert) -> None:
    """Adds an expert to a model under a name, inactive and frozen."""
    model.add_adapter(name, expert.config)
    layers = dict(model.get_base_model().named_modules())
    with torch.no_grad():
        for matrix, z in expert.z.items():
            layer = layers[matrix]
            assert isinstance(layer, SVFLinear)
            layer.svf_z[name].copy_(z)


def with_room(model: PreTrainedModel | PeftModel, writer: TextToAdapter) -> PeftModel:
    """The model itself if it carries experts, else the base with the identity expert, so that others can join it."""
    if isinstance(model, PeftModel):
        return model
    z = {
        matrix.name: torch.ones(min(matrix.out_features, matrix.in_features, writer.network.spec.output.rank or 1))
        for matrix in writer.network.spec.matrices
    }
    return get_peft_model(model, Expert(z).config, adapter_name=f"{PREFIX}identity")
