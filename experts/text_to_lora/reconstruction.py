"""Training by reconstruction: from a description, the adapter that was trained for its task (arXiv 2506.06105, 3.1)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from experts.exchange.lora_folder import read_lora
from experts.expert import read_config, read_z
from experts.outside.errors import UserError, check_numbers
from experts.outside.reading import read_json
from experts.svf.decomposition import Factors
from experts.text_to_lora.encoder import TaskEncoder, make_encoder
from experts.text_to_lora.examples import Rounds
from experts.text_to_lora.network import AdapterNetwork, LoraOutput, LowRank, SvfOutput, Written
from experts.text_to_lora.rows import base_factors
from experts.text_to_lora.run import Learning, NetworkTraining, check_network_run, train_network
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.tasks import Tasks
from experts.text_to_lora.writer import Base, Design, TextToAdapter
from experts.training.run import Result, Run


@dataclass(frozen=True, kw_only=True)
class Reconstruction(NetworkTraining):
    """How a network is trained to write the adapters of a library."""

    items_option: ClassVar[str] = "adapters_per_step"

    adapters: str
    """A folder of adapter folders, each named like its task, or an expert library."""
    loss: Literal["normalised", "difference"] = "normalised"
    """L1 on the adapter's numbers, each divided by its deviation over the library; or on the difference that the
    adapter makes to each weight: B A, or s·(z − 1), as it stands beside the singular vectors."""
    learning_rate: float = 1e-3
    adapters_per_step: int = 4
    micro_batch_size: int = 4
    weight_decay: float = 1e-3
    warmup: float = 0.1
    validation_adapters: int = 0
    """Held out to choose the best step; 0 validates on what was trained on, each adapter from its first description."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, least=[("validation_adapters", 0)])


def train_reconstruction(design: Design, base: Base, tasks: Tasks, options: Reconstruction, run: Run) -> Result:
    """Trains a network to write the adapters of a library back from descriptions of their tasks.

    The library decides about everything that is written but the size. The base's weights are needed for an encoder that
    is the base itself, and for the difference that experts make.

    Raises:
        UserError: for anything that the library, the tasks, the base, the encoder or the folders lack.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written.
    """
    check_network_run(run, options)
    targets = read_targets(Path(options.adapters))
    output = targets.output
    if type(output) is not type(design.output):
        raise UserError(f"{options.adapters} holds adapters of the kind {output.kind}: set output.kind to that")
    if isinstance(output, LoraOutput) and isinstance(design.output, LoraOutput):
        output = replace(output, size=design.output.size)
    encoder = make_encoder(design.encoder, base.load, trust_remote_code=design.trust_remote_code)
    torch.manual_seed(options.seed)
    writer = TextToAdapter.untrained(
        output,
        read_matrices(base.config(), output.target_modules),
        encoder,
        base=base.name,
        fingerprint=targets.fingerprint,
        normalised=options.loss == "normalised",
        **asdict(design.sizes),
    )
    needs_factors = isinstance(output, SvfOutput) and options.loss == "difference"
    factors = base_factors(base.load()[0], writer.network) if needs_factors else None
    described = {task.name: task.descriptions for task in (*tasks.train, *tasks.validation, *tasks.test)}
    library = Library(targets, writer.network, embedded_descriptions(targets, described, encoder))
    rows = list(range(len(targets.names)))
    held_out, learned = rows[: options.validation_adapters], rows[options.validation_adapters :]
    if not learned:
        raise UserError(f"{options.adapters} has {len(rows)} adapters: none is left beside {len(held_out)} held out")
    if options.loss == "normalised":
        library.normalise(writer.network, learned)
    learning = Learning(
        ReconstructionLoss(writer.network, options.loss, factors),
        library.items(options, learned),
        [library.item(row) for row in held_out or learned],
        collate,
    )
    return train_network(writer, learning, options, run)


@dataclass(frozen=True)
class Targets:
    """Trained adapters of one base and one kind."""

    names: list[str]
    output: LoraOutput | SvfOutput
    adapters: Written
    """Matrix name → those of all names, in their order."""
    descriptions: list[str | None]
    """Of each, where the adapters themselves say."""
    fingerprint: str | None
    """Of the base that experts belong to."""


def read_targets(folder: Path) -> Targets:
    """All adapters of a folder: LoRAs, or SVF experts.

    Raises:
        UserError: if there is none, one is damaged, or they differ in kind, rank, scaling or matrices.
    """
    paths = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if not paths:
        raise UserError(f"{folder} holds no adapters: no folder in it has an adapter_config.json")
    read = [_read(path) for path in paths]
    first = read[0]
    for path, adapter in zip(paths, read, strict=True):
        problem = None
        if adapter.output != first.output:
            problem = f"{paths[0].name} is {_say(first.output)}, {path.name} {_say(adapter.output)}"
        elif adapter.shapes != first.shapes:
            problem = f"{path.name} has other matrices than {paths[0].name}"
        elif adapter.fingerprint != first.fingerprint:
            problem = f"{path.name} belongs to another base than {paths[0].name}"
        if problem:
            raise UserError(f"the adapters in {folder} cannot be learned together: {problem}")
    adapters: Any = {}
    for matrix, parts in first.tensors.items():
        stacked = [torch.stack([adapter.tensors[matrix][part] for adapter in read]) for part in range(len(parts))]
        adapters[matrix] = LowRank(*stacked) if isinstance(first.output, LoraOutput) else stacked[0]
    descriptions = [adapter.description for adapter in read]
    return Targets([path.name for path in paths], first.output, adapters, descriptions, first.fingerprint)


@dataclass(frozen=True)
class _Adapter:
    output: LoraOutput | SvfOutput
    tensors: Mapping[str, tuple[Tensor, ...]]
    """Matrix name → (A, B) or (z,)."""
    description: str | None = None
    fingerprint: str | None = None

    @property
    def shapes(self) -> dict[str, list[torch.Size]]:
        return {matrix: [part.shape for part in parts] for matrix, parts in self.tensors.items()}


def _read(path: Path) -> _Adapter:
    document = read_json(path / "adapter_config.json")
    if not isinstance(document, dict):
        raise UserError(f"{path / 'adapter_config.json'} is damaged: it is not a JSON object")
    kind = document.get("peft_type")
    if kind == "SVF":
        config = read_config(path)
        z = read_z(path)
        rank = config.rank or max(map(len, z.values()))
        vectors = {name: (vector,) for name, vector in z.items()}
        return _Adapter(SvfOutput(rank, sorted(z)), vectors, config.description, config.base_fingerprint)
    if kind != "LORA":
        raise UserError(f"{path} is a {kind} adapter; a network learns to write LoRAs and SVF experts")
    lora = read_lora(path)
    ranks = sorted(set(lora.ranks.values()))
    if len(ranks) > 1:
        raise UserError(f"{path} is a LoRA of mixed ranks, {ranks}; a network writes one rank for all matrices")
    output = LoraOutput(ranks[0], ranks[0] if lora.alpha is None else lora.alpha, lora.rslora, sorted(lora.a))
    return _Adapter(output, {name: (a, lora.b[name]) for name, a in lora.a.items()})


def _say(output: LoraOutput | SvfOutput) -> str:
    if isinstance(output, LoraOutput):
        return f"a LoRA of rank {output.rank} and scaling {output.scaling:.3g} on {len(output.target_modules)} matrices"
    return f"an SVF expert of rank {output.rank} on {len(output.target_modules)} matrices"


class Library:
    """Targets as the network's own numbers, with the embedded descriptions of each.

    Raises:
        UserError: if the adapters do not fit the network's matrices.
    """

    def __init__(self, targets: Targets, network: AdapterNetwork, descriptions: Sequence[Tensor]) -> None:
        for matrix in network.spec.matrices:
            adapter = targets.adapters.get(matrix.name)
            longest = min(matrix.out_features, matrix.in_features)
            if isinstance(adapter, LowRank):
                fits = (adapter.b.shape[1], adapter.a.shape[2]) == (matrix.out_features, matrix.in_features)
            else:
                fits = adapter is not None and adapter.shape[1] == min(longest, network.spec.output.rank or longest)
            if not fits:
                raise UserError(f"the adapters are for another base: nothing in them fits {matrix.name} of this one")
        self.numbers = network.numbers(targets.adapters)  # [adapters, N, P] a kind of matrix
        self.descriptions = descriptions  # [D, E] an adapter

    def items(self, options: Reconstruction, chosen: Sequence[int]) -> Rounds:
        """As many random items as the run needs, a round of the chosen adapters after the other."""

        def draw(index: int, rng: random.Random) -> dict[str, Any]:
            row = chosen[index]
            return self.item(row, rng.randrange(len(self.descriptions[row])))

        return Rounds(len(chosen), options.steps * options.adapters_per_step, options.seed, draw)

    def item(self, row: int, description: int = 0) -> dict[str, Any]:
        return {"tasks": self.descriptions[row][description], "targets": [numbers[row] for numbers in self.numbers]}

    def normalise(self, network: AdapterNetwork, chosen: Sequence[int]) -> None:
        """Gives the network the means and deviations of the chosen adapters, and lets it begin at their mean."""
        for kind, (numbers, head) in enumerate(zip(self.numbers, network.heads, strict=True)):
            own = numbers[list(chosen)]
            network.get_buffer(f"mean_{kind}").copy_(own.mean(0))
            # A number that is the same in all adapters stays what it is.
            network.get_buffer(f"deviation_{kind}").copy_(own.std(0, correction=0).clamp(min=1e-8))
            for name, parameter in head.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`tasks` [B, E], and `targets`: [B, N, P] a kind of matrix."""
    return {
        "tasks": torch.stack([item["tasks"] for item in items]),
        "targets": [torch.stack(of_kind) for of_kind in zip(*(item["targets"] for item in items), strict=True)],
    }


class ReconstructionLoss:
    """The L1 distance between written and trained adapters, averaged over matrices (normalised: over numbers)."""

    def __init__(
        self, network: AdapterNetwork, loss: Literal["normalised", "difference"], factors: Mapping[str, Factors] | None
    ) -> None:
        self.network, self.loss, self.factors = network, loss, factors

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """`model` is the network, possibly wrapped for several processes."""
        network, numbers = self.network, model(batch["tasks"])
        if self.loss == "normalised":
            distances = []
            for kind, (written, target) in enumerate(zip(numbers, batch["targets"], strict=True)):
                mean, deviation = network.get_buffer(f"mean_{kind}"), network.get_buffer(f"deviation_{kind}")
                distances.append((written - (target - mean) / deviation).abs().mean((0, 2)))  # [N]
            return torch.cat(distances).mean()
        wanted: Any = network.adapters(batch["targets"])
        distances = []
        for name, adapter in network.unpack(numbers).items():
            if isinstance(adapter, LowRank):
                distance = adapter.b @ adapter.a - wanted[name].b @ wanted[name].a
            else:
                assert self.factors is not None
                distance = self.factors[name].s * (adapter - wanted[name])
            distances.append(distance.abs().mean())
        return 1e4 * torch.stack(distances).mean()  # as the paper's code, so that learning rates carry over


def embedded_descriptions(
    targets: Targets, of_tasks: Mapping[str, tuple[str, ...]], encoder: TaskEncoder
) -> list[Tensor]:
    """The descriptions of each adapter, embedded: those of the task of its name, else its own.

    Raises:
        UserError: naming an adapter that nobody describes.
    """
    embedded = []
    for name, own in zip(targets.names, targets.descriptions, strict=True):
        texts = of_tasks.get(name) or (own and (own,))
        if not texts:
            raise UserError(f"nobody describes the adapter {name}: no task has that name, and it says nothing itself")
        embedded.append(encoder(texts).cpu())
    return embedded
