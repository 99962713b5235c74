"""Training by reconstruction: the network writes, from a description, the adapter that was trained for its task
(arXiv 2506.06105, 3.1)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from experts.exchange.lora_folder import read_lora
from experts.expert import read_config, read_z
from experts.library import ExpertLibrary
from experts.outside.errors import UserError, check_numbers
from experts.outside.files import expand
from experts.outside.reading import read_json
from experts.shipped import shipped_library
from experts.svf.decomposition import Factors
from experts.text_to_lora.encoder import make_encoder
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
    """A folder of adapters, each in a folder named like its task; a library; or a base, for those shipped with it."""
    identity: list[str] = field(default_factory=list)
    """Tasks without an adapter, which the base does itself: the network learns z = 1 for them. Only with experts."""
    loss: Literal["normalised", "difference"] = "normalised"
    """L1 on the adapter's numbers, each divided by its deviation over the library; or on the difference that the
    adapter makes to each weight: B A, or s·(z − 1) in the basis of the singular vectors."""
    learning_rate: float = 1e-3
    adapters_per_step: int = 4
    micro_batch_size: int = 4
    weight_decay: float = 1e-3
    warmup: float = 0.1
    validation_adapters: int = 0
    """Adapters held out to choose the best step; 0 validates on the trained ones, each from its first description."""
    validation_descriptions: float = 0.0
    """The share of each adapter's descriptions to hold out for that instead, chosen by a hash of their texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, least=[("validation_adapters", 0), ("validation_descriptions", 0)])
        if self.validation_descriptions >= 1:
            raise UserError(f"validation_descriptions must be below 1, not {self.validation_descriptions}")
        if self.validation_adapters and self.validation_descriptions:
            raise UserError("validation_adapters and validation_descriptions both say what is held out; set one alone")


def train_reconstruction(design: Design, base: Base, tasks: Tasks, options: Reconstruction, run: Run) -> Result:
    """Trains a network to reconstruct the adapters of a library from descriptions of their tasks.

    The library decides everything about the output except the network's size and heads. The base's weights are needed
    if the encoder is the base itself, and for the difference that experts make.

    Raises:
        UserError: for anything wrong with the library, the tasks, the base, the encoder or the folders.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN, after writing the best network until then.
    """
    check_network_run(run, options)
    targets = with_identity(read_targets(find_adapters(options.adapters)), options.identity)
    output = targets.output
    if type(output) is not type(design.output):
        raise UserError(f"{options.adapters} holds adapters of the kind {output.kind}: set output.kind to that")
    if isinstance(output, LoraOutput) and isinstance(design.output, LoraOutput):
        output = replace(output, size=design.output.size)
    if isinstance(output, SvfOutput) and isinstance(design.output, SvfOutput):
        output = replace(output, own_heads=design.output.own_heads)
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
    texts, held_out_texts = hold_out(descriptions_of(targets, described), options.validation_descriptions)
    library = Library(targets, writer.network, [encoder(own).cpu() for own in texts])
    rows = list(range(len(targets.names)))
    held_out, learned = rows[: options.validation_adapters], rows[options.validation_adapters :]
    if not learned:
        raise UserError(
            f"{options.adapters} has {len(rows)} adapters, and {len(held_out)} are held out: none is left to learn from"
        )
    if options.loss == "normalised":
        library.normalise(writer.network, learned)
    if options.validation_descriptions:
        validation = [library.item(row, task) for row, own in held_out_texts.items() for task in encoder(own).cpu()]
    else:
        validation = [library.item(row, library.descriptions[row][0]) for row in held_out or learned]
    learning = Learning(
        ReconstructionLoss(writer.network, options.loss, factors),
        library.items(options, learned),
        validation,
        collate,
        _about({targets.names[row]: len(texts[row]) for row in learned}, options, len(validation)),
    )
    return train_network(writer, learning, options, run)


def _about(descriptions: Mapping[str, int], options: Reconstruction, validating: int) -> str:
    """What a network learned from, in words, given the number of descriptions of each adapter."""
    identity = [name for name in options.identity if name in descriptions]
    adapters = [f"`{name}` from {count}" for name, count in descriptions.items() if name not in identity]
    said = f"It learned to write {len(adapters)} adapters back: {', '.join(adapters)} descriptions."
    if identity:
        others = ", ".join(f"{descriptions[name]} of `{name}`" for name in identity)
        said += f"\nFor everything else it learned to leave the base as it is (z = 1), from descriptions: {others}."
    if options.validation_descriptions:
        said += f"\n{validating} more of their descriptions chose the step."
    elif options.validation_adapters:
        said += f"\n{validating} more adapters chose the step."
    return said


@dataclass(frozen=True)
class Targets:
    """Trained adapters of one base and one kind."""

    names: list[str]
    output: LoraOutput | SvfOutput
    adapters: Written
    """Matrix name → the adapters of all names, in their order."""
    descriptions: list[str | None]
    """Each adapter's own description; None if it has none."""
    fingerprint: str | None
    """The fingerprint of the base that experts belong to."""


def find_adapters(name: str) -> Path:
    """The folder of this name or, if there is none, the folder of the experts shipped for the base of this name."""
    folder = expand(name)
    return folder if folder.is_dir() else shipped_library(name) or folder


def read_targets(folder: Path) -> Targets:
    """All adapters in a folder: LoRAs, or SVF experts. From a library, those that answer, but not its classifier.

    Raises:
        UserError: if there is none, one is damaged, or they differ in kind, rank, scaling or matrices.
    """
    if (folder / "library.json").is_file():
        library = ExpertLibrary.open(folder)
        paths = sorted(map(library.path, library.names))
    else:
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
            problem = f"{path.name} adapts other matrices than {paths[0].name}"
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


def with_identity(targets: Targets, tasks: Sequence[str]) -> Targets:
    """The same adapters, and z = 1 for each of the tasks.

    Raises:
        UserError: for LoRAs, whose A could be anything if B is 0; or if a task already has an adapter.
    """
    if not tasks:
        return targets
    if isinstance(targets.output, LoraOutput):
        raise UserError(
            "identity is for experts, where it is z = 1; many different LoRAs are the identity, so leave it out"
        )
    if twice := [name for name in targets.names if name in tasks]:
        raise UserError(f"identity names {', '.join(twice)}, for which there is an adapter; leave one of the two out")
    z: Any = targets.adapters
    return replace(
        targets,
        names=[*targets.names, *tasks],
        adapters={matrix: torch.cat([own, own.new_ones(len(tasks), own.shape[1])]) for matrix, own in z.items()},
        descriptions=[*targets.descriptions, *[None] * len(tasks)],
    )


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
    """Targets as the network's own numbers, with each adapter's embedded descriptions.

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
        self.numbers = network.numbers(targets.adapters)  # [adapters, N, P] per kind of matrix
        self.descriptions = descriptions  # [D, E] per adapter

    def items(self, options: Reconstruction, chosen: Sequence[int]) -> Rounds:
        """As many random items as the run needs, in rounds over the chosen adapters."""

        def draw(index: int, rng: random.Random) -> dict[str, Any]:
            row = chosen[index]
            return self.item(row, self.descriptions[row][rng.randrange(len(self.descriptions[row]))])

        return Rounds(len(chosen), options.steps * options.adapters_per_step, options.seed, draw)

    def item(self, row: int, task: Tensor) -> dict[str, Any]:
        """An embedded description [E], and the adapter to write from it."""
        return {"tasks": task, "targets": [numbers[row] for numbers in self.numbers]}

    def normalise(self, network: AdapterNetwork, chosen: Sequence[int]) -> None:
        """Gives the network the means and deviations of the chosen adapters, and makes it start at their mean."""
        for kind, (numbers, head) in enumerate(zip(self.numbers, network.heads, strict=True)):
            own = numbers[list(chosen)]
            network.get_buffer(f"mean_{kind}").copy_(own.mean(0))
            # A number that is the same in all adapters is not rescaled.
            network.get_buffer(f"deviation_{kind}").copy_(own.std(0, correction=0).clamp(min=1e-8))
            for name, parameter in head.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`tasks` [B, E], and `targets`: [B, N, P] per kind of matrix."""
    return {
        "tasks": torch.stack([item["tasks"] for item in items]),
        "targets": [torch.stack(of_kind) for of_kind in zip(*(item["targets"] for item in items), strict=True)],
    }


class ReconstructionLoss:
    """The L1 distance between written and trained adapters, averaged over matrices."""

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
        return 1e4 * torch.stack(distances).mean()  # as in the paper's code, which puts this factor into A and B


def descriptions_of(targets: Targets, of_tasks: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The descriptions of each adapter: those of the task with its name, else its own.

    Raises:
        UserError: naming an adapter that has no description.
    """
    texts = []
    for name, own in zip(targets.names, targets.descriptions, strict=True):
        described = of_tasks.get(name) or (own and (own,))
        if not described:
            raise UserError(
                f"the adapter {name} has no description: no task has its name, and it comes with none of its own; "
                "add one to the file in data.descriptions"
            )
        texts.append(described)
    return texts


def hold_out(
    texts: Sequence[tuple[str, ...]], share: float
) -> tuple[list[tuple[str, ...]], dict[int, tuple[str, ...]]]:
    """Each adapter's descriptions without the held-out share, and the held-out ones of those adapters that have any.

    Which ones are held out depends only on the texts. Each adapter keeps at least one.

    Raises:
        UserError: if a share is asked for but nothing is held out.
    """
    learned, held_out = [], {}
    for row, given in enumerate(texts):
        own = dict.fromkeys(given)  # a text that is given twice is not on both sides
        ordered = sorted(own, key=lambda text: hashlib.sha256(text.encode()).digest())
        count = min(round(share * len(own)), len(own) - 1)
        learned.append(tuple(text for text in own if text not in ordered[:count]))
        if count:
            held_out[row] = tuple(ordered[:count])
    if share and not held_out:
        raise UserError(f"no adapter has enough descriptions to hold out a share of {share}; write more of them")
    return learned, held_out
