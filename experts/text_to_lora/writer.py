"""A trained network with its encoder: it turns descriptions into adapters that can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.outside.errors import UserError, check_numbers
from experts.outside.files import atomic_folder
from experts.outside.reading import read_json
from experts.svf.fingerprint import refuse_other_base
from experts.text_to_lora.encoder import BASE, LoadBase, SentenceEncoder, TaskEncoder, make_encoder, tidy
from experts.text_to_lora.network import AdapterNetwork, LoraOutput, LowRank, NetworkConfig, SvfOutput, Written
from experts.text_to_lora.shapes import Matrix, check_same_matrices, read_matrices


@dataclass(frozen=True)
class Base:
    """A base by its name; only what is needed of it is loaded."""

    name: str
    config: Callable[[], PreTrainedConfig]
    load: LoadBase
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else decides how it answers, such as its dtype."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network."""

    latent_size: int = 128
    head_size: int = 512
    dropout: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(self, least=[("dropout", 0)], counts=["latent_size", "head_size"])
        if self.dropout >= 1:
            raise UserError(f"dropout must be below 1, not {self.dropout}")


@dataclass(frozen=True)
class Design:
    """The design of a network, before the matrices of its base are known."""

    output: LoraOutput | SvfOutput
    encoder: str
    """A built-in name, a hub id or a folder; "base" is the base model's own last token."""
    trust_remote_code: bool = False
    """Let an encoder from the hub run the code that it brings."""
    sizes: Sizes = field(default_factory=Sizes)


class TextToAdapter:
    """A network and the encoder that it was trained with.

        writer = TextToAdapter.from_pretrained("path/to/network")
        writer.generate(["Sums of two numbers."])[0].write("path/to/adapter")

    The base is not needed: its matrices are named in the network's configuration.
    """

    def __init__(self, network: AdapterNetwork, encoder: TaskEncoder) -> None:
        if encoder.size != network.spec.encoder_size:
            raise UserError(
                f"the network reads embeddings of {network.spec.encoder_size} numbers ({network.spec.encoder}), "
                f"but the encoder {encoder.name} gives {encoder.size}"
            )
        self.network = network
        self.encoder = encoder

    @classmethod
    def untrained(
        cls,
        output: LoraOutput | SvfOutput,
        matrices: Sequence[Matrix],
        encoder: TaskEncoder,
        *,
        base: str | None = None,
        fingerprint: str | None = None,
        **sizes: Any,
    ) -> TextToAdapter:
        """A fresh network for a base with these matrices, which writes the identity adapter.

        Args:
            sizes: `latent_size`, `head_size` and `dropout`, if they should not be the paper's.

        Raises:
            UserError: if there cannot be such a network, or not in this machine's memory.
        """
        config = NetworkConfig(output, tuple(matrices), encoder.name, encoder.size, base, fingerprint, **sizes)
        try:
            network = AdapterNetwork(config)
        except RuntimeError as error:
            raise UserError(
                f"the network does not fit into memory with latent_size {config.latent_size}, head_size "
                f"{config.head_size} and rank {output.rank}: lower them"
            ) from error
        return cls(network.eval(), encoder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, encoder: TaskEncoder | None = None, trust_remote_code: bool = False
    ) -> TextToAdapter:
        """Reads what `save_pretrained` wrote.

        Args:
            encoder: by default the one that the network names; needed if that is the base itself (`LastTokenEncoder`).
            trust_remote_code: let an encoder from the hub run the code that it brings.

        Raises:
            UserError: if the folder holds no network, it is damaged, or its encoder cannot be loaded.
        """
        network = read_network(Path(folder))
        name = network.spec.encoder
        if encoder is None:
            if name == BASE:
                raise UserError(f"the network in {folder} reads descriptions with its base model: pass that as encoder")
            encoder = SentenceEncoder(name, trust_remote_code=trust_remote_code)
        elif encoder.name != name:
            raise UserError(f"the network in {folder} was trained with the encoder {name}, not {encoder.name}")
        return cls(network, encoder)

    @classmethod
    def for_base(
        cls,
        folder: Path,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        trust_remote_code: bool = False,
    ) -> TextToAdapter:
        """As `from_pretrained`, given the base that it writes for, which may also be the encoder.

        Raises:
            UserError: also for another base.
        """
        network = read_network(folder)
        if network.spec.fingerprint is not None:
            refuse_other_base(f"the network in {folder}", network.spec.fingerprint, None, base)
        encoder = make_encoder(network.spec.encoder, lambda: (base, tokenizer), trust_remote_code=trust_remote_code)
        return cls(network.to(base.device), encoder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `network.json` and `network.safetensors` into a folder, all or nothing, replacing an older one."""
        with atomic_folder(Path(folder)) as temporary:
            write_network(self.network, temporary)

    @torch.no_grad()
    def write(self, descriptions: Sequence[str]) -> Written:
        """The adapters of B descriptions as tensors: matrix name → LoRAs, or z [B, r].

        Raises:
            UserError: if a description is empty.
        """
        device = next(self.network.parameters()).device
        self.network.eval()
        return self.network.unpack(self.network(self.encoder(tidy(descriptions)).to(device)))

    def generate(self, descriptions: Sequence[str]) -> list[Lora] | list[Expert]:
        """One adapter per description, each with a `write(folder)`.

        Raises:
            UserError: if a description is empty.
        """
        return self.split(self.write(descriptions), descriptions)

    def split(self, written: Written, descriptions: Sequence[str]) -> list[Lora] | list[Expert]:
        """The adapters of B descriptions, one by one."""
        spec = self.network.spec
        loras, experts = [], []
        for row, description in enumerate(descriptions):
            a: dict[str, Tensor] = {}
            b: dict[str, Tensor] = {}
            z: dict[str, Tensor] = {}
            for matrix, adapter in written.items():
                if isinstance(adapter, LowRank):
                    a[matrix], b[matrix] = adapter.a[row].cpu(), adapter.b[row].cpu()
                else:
                    z[matrix] = adapter[row].cpu()
            if isinstance(spec.output, LoraOutput):
                loras.append(Lora(a, b, spec.output.alpha, spec.output.rslora, spec.base, description))
            else:
                experts.append(Expert(z, spec.base, spec.fingerprint, description))
        return loras or experts


def load_writer(
    network: Path,
    base_named: Callable[[str | None], Base],
    *,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> TextToAdapter:
    """A trained network with its encoder, even if that is the base itself.

    Args:
        base_named: a name → the base, and None → the base to take if no name is given.
        model: the base that the adapters are for; its matrices are compared with the network's, for which its config is
            enough.

    Raises:
        UserError: if the folder holds no network, or one for another base.
    """
    read = read_network(network)
    spec = read.spec
    base = base_named(model or spec.base)
    if model is not None:
        check_same_matrices(spec.matrices, read_matrices(base.config(), spec.output.target_modules))
    return TextToAdapter(read, make_encoder(spec.encoder, base.load, trust_remote_code=trust_remote_code))


def write_network(network: AdapterNetwork, folder: Path) -> None:
    """Writes a network's two files into an existing folder."""
    document = asdict(network.spec)
    document["output"]["kind"] = network.spec.output.kind
    (folder / "network.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "network.safetensors")


def read_network(folder: Path) -> AdapterNetwork:
    """The network that `write_network` left in a folder.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    path = folder / "network.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no text-to-adapter network: it has no network.json")
    document, weights = read_json(path), folder / "network.safetensors"
    try:
        kind = {"lora": LoraOutput, "svf": SvfOutput}[document["output"].pop("kind")]
        document["output"] = TypeAdapter(kind).validate_python(document["output"])
        network = AdapterNetwork(TypeAdapter(NetworkConfig).validate_python(document))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {field and f'{field}: '}{first['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {next(iter(str(error).splitlines()), '')}") from error
    try:
        tensors = load_file(weights)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{weights} is damaged or missing: {reason}") from error
    except RuntimeError as error:
        raise UserError(f"{weights} is damaged: its tensors are not those of the network in {path.name}") from error
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{weights} is damaged: {wrong[0]} has a number that is not finite")
    return network.eval()
