"""The hypernetwork: it turns the embedding of a task description into an adapter for every matrix of a base.

    task      description → encoder → Linear, LayerNorm                                     [d/2]
    layer     number of the layer → Embedding, LayerNorm                                    [d/4]
    module    q_proj, v_proj, … → Embedding, LayerNorm                                      [d/4]
    mixer     the three, side by side                                                       [d]
    blocks    two residual ones; A or B (M, S) enters before the second, the rank (S) after it, which then runs again
    head      one for each kind of matrix: the numbers of its adapter

A head writes one flat vector per matrix, with no gradient-free part in it: A [r, n] and then Bᵀ [r, m] for a LoRA,
z − 1 [r] for an SVF expert. Its weight starts at zero, so an untrained network writes what the bias holds: for a LoRA
the usual initialisation, A random and B = 0 (arXiv 2506.06105: Bias-HyperInit), for an expert z = 1.

This follows arXiv 2506.06105 and its code, with two differences in M and S: the bias of a head holds a whole LoRA, so
that they too start at the identity, and the rank enters as a learned embedding instead of a rotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from experts.outside.errors import UserError, check_numbers
from experts.outside.fields import added
from experts.text_to_lora.shapes import Matrix

Size = Literal["L", "M", "S"]


class LowRank(NamedTuple):
    """The LoRAs of one matrix W [m, n] for B tasks: ΔW_b = scaling · B_b A_b."""

    a: Tensor  # [B, r, n]
    b: Tensor  # [B, m, r]


Written = dict[str, LowRank] | dict[str, Tensor]
"""Matrix name → LoRAs, or z [B, r]: what the network writes for B tasks."""


@dataclass(frozen=True)
class LoraOutput:
    """The network writes LoRAs."""

    kind: ClassVar[str] = "lora"
    also_called: ClassVar[Mapping[str, str]] = {"r": "rank", "lora_alpha": "alpha"}
    """PEFT's names for our fields, which recipes may use as well."""

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = True
    """Scale the difference by alpha / √rank; without this, by alpha / rank."""
    target_modules: str | list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    size: Size = "L"
    """L writes A and B at once, M one after the other, S rank by rank: 55, 34 and 5 million parameters on 7B bases."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of a LoRA is at least 1, not {self.rank}")

    @property
    def scaling(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class SvfOutput:
    """The network writes SVF experts: z, one number per singular value."""

    kind: ClassVar[str] = "svf"

    rank: int | None = None
    """Only this many of the largest singular values of each matrix; None takes all."""
    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    own_heads: bool = added(default=False)
    """Each matrix has a head of its own, whose bias holds the expert that all tasks share; else each shape has one.

    Singular values of different matrices have nothing in common but their rank, so one head for all says little.
    """

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"the rank of an expert is at least 1, or None for all singular values, not {self.rank}")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that a saved network needs to be built again."""

    output: LoraOutput | SvfOutput
    matrices: tuple[Matrix, ...]
    encoder: str
    encoder_size: int
    base: str | None = None
    """The base's name."""
    fingerprint: str | None = None
    """The fingerprint of the base whose singular values the experts rescale, or on which the network was trained."""
    latent_size: int = 128
    head_size: int = 512
    dropout: float = 0.05
    normalised: bool = False
    """Trained to reconstruct: the library's means and deviations turn the heads' numbers into adapters."""

    def __post_init__(self) -> None:
        check_numbers(self, least=[("encoder_size", 1), ("latent_size", 1), ("head_size", 1)])
        if self.latent_size % 4:
            raise UserError(f"latent_size must be a multiple of 4, not {self.latent_size}")


class ResidualBlock(nn.Sequential):
    """x + MLP(LayerNorm(x)) for x [..., d]."""

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__(nn.LayerNorm(d), *_mlp(d, dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _mlp(d: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(d, 4 * d), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * d, d), nn.SiLU(), nn.Dropout(dropout)]


def _embedding(n: int, d: int) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(n, d), nn.LayerNorm(d))


class LoraHead(nn.Module):
    """A and B of the LoRAs of one kind of matrix W [m, n].

    L writes A and B at once, r·(n + m) numbers. M writes A and B one after the other, r·max(n, m) numbers each. S
    writes one rank of one of them at a time, max(n, m) numbers. Numbers beyond the shorter side are not used.

    The bias is a whole LoRA, shared by all tasks and layers.
    """

    def __init__(self, size: Size, rank: int, out_features: int, in_features: int, features: int) -> None:
        super().__init__()
        self.size, self.rank, self.out_features, self.in_features = size, rank, out_features, in_features
        self.longest = max(out_features, in_features)
        self.numbers = rank * (in_features + out_features)
        outputs = {"L": self.numbers, "M": rank * self.longest, "S": self.longest}
        self.linear = nn.Linear(features, outputs[size], bias=False)
        nn.init.zeros_(self.linear.weight)
        a = torch.empty(rank, in_features)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.bias = nn.Parameter(torch.cat([a.flatten(), torch.zeros(rank * out_features)]))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, N, h] (L), [B, N, 2, h] (M) or [B, N, 2, r, h] (S) of N matrices → [B, N, r·(n + m)]."""
        numbers = self.linear(features)
        if self.size != "L":
            numbers = numbers.view(*features.shape[:2], 2, self.rank, self.longest)
            a, b = numbers[:, :, 0, :, : self.in_features], numbers[:, :, 1, :, : self.out_features]
            numbers = torch.cat([a.flatten(2), b.flatten(2)], 2)
        return numbers + self.bias


class ZHead(nn.Module):
    """Writes z − 1 of experts, for all matrices of one shape."""

    def __init__(self, rank: int, features: int) -> None:
        super().__init__()
        self.numbers = rank
        self.linear = nn.Linear(features, rank)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, N, h] of N matrices → [B, N, r]."""
        return self.linear(features)


class OwnZHeads(nn.Module):
    """Writes z − 1 of experts, with a head for each of N matrices of one shape."""

    def __init__(self, matrices: int, rank: int, features: int) -> None:
        super().__init__()
        self.numbers = rank
        self.weight = nn.Parameter(torch.zeros(matrices, rank, features))
        self.bias = nn.Parameter(torch.zeros(matrices, rank))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, N, h] → [B, N, r]."""
        return torch.einsum("bnh,nrh->bnr", features, self.weight) + self.bias


class AdapterNetwork(nn.Module):
    """Writes an adapter for B tasks at once.

    Its `forward` gives the heads' numbers, one tensor [B, N, P] per kind of matrix: N matrices of P numbers. `unpack`
    turns them into adapters. A kind is a module name and shape for LoRAs, and a shape for experts.
    """

    module_ids: Tensor  # [M]
    layers: Tensor  # [M]

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.spec = config  # transformers' Trainer would write into a `config`
        d, dropout, matrices = config.latent_size, config.dropout, config.matrices
        modules = sorted({matrix.module for matrix in matrices})
        self.register_buffer(
            "module_ids", torch.tensor([modules.index(matrix.module) for matrix in matrices]), persistent=False
        )
        self.register_buffer("layers", torch.tensor([matrix.layer for matrix in matrices]), persistent=False)

        self.task = nn.Sequential(nn.Linear(config.encoder_size, d // 2), nn.LayerNorm(d // 2))
        self.layer = _embedding(max(matrix.layer for matrix in matrices) + 1, d // 4)
        self.module = _embedding(len(modules), d // 4)
        self.mixer = nn.Sequential(nn.Dropout(dropout), *_mlp(d, dropout))
        self.block1 = ResidualBlock(d, dropout)
        self.block2 = ResidualBlock(d, dropout)
        self.features = nn.Sequential(
            nn.LayerNorm(d),
            nn.Linear(d, 4 * d),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * d, config.head_size),
            nn.SiLU(),
        )
        size = config.output.size if isinstance(config.output, LoraOutput) else None
        self.side = _embedding(2 * len(modules), d) if size in ("M", "S") else None  # A or B of a module
        self.position = _embedding(config.output.rank or 0, d) if size == "S" else None  # which of the ranks

        self.kinds: dict[tuple[object, ...], list[int]] = {}  # kind → the indices of its matrices
        for index, matrix in enumerate(matrices):
            kind: tuple[object, ...] = (matrix.out_features, matrix.in_features)
            if isinstance(config.output, LoraOutput):
                kind = (matrix.module, *kind)
            self.kinds.setdefault(kind, []).append(index)
        heads = [self._head(matrices[of_kind[0]], len(of_kind)) for of_kind in self.kinds.values()]
        self.heads = nn.ModuleList(heads)
        for number, (of_kind, head) in enumerate(zip(self.kinds.values(), heads, strict=True)):
            if config.normalised:
                shape = (len(of_kind), head.numbers)
                self.register_buffer(f"mean_{number}", torch.zeros(shape))
                self.register_buffer(f"deviation_{number}", torch.ones(shape))

    def _head(self, matrix: Matrix, matrices: int) -> LoraHead | ZHead | OwnZHeads:
        """The head for so many matrices like this one."""
        output, features = self.spec.output, self.spec.head_size
        if isinstance(output, LoraOutput):
            return LoraHead(output.size, output.rank, matrix.out_features, matrix.in_features, features)
        longest = min(matrix.out_features, matrix.in_features)
        rank = min(longest, output.rank or longest)
        return OwnZHeads(matrices, rank, features) if output.own_heads else ZHead(rank, features)

    def forward(self, tasks: Tensor) -> list[Tensor]:
        """Embedded descriptions [B, E] → the numbers of the adapters, for each kind of matrix [B, N, P]."""
        matrices = len(self.layers)
        task = self.task(tasks)[:, None].expand(-1, matrices, -1)  # [B, M, d/2]
        place = torch.cat([self.layer(self.layers), self.module(self.module_ids)], -1)  # [M, d/2]
        x = self.mixer(torch.cat([task, place.expand(len(tasks), -1, -1)], -1))  # [B, M, d]
        x = self.block1(x)
        if self.side is not None:
            sides = 2 * self.module_ids[:, None] + torch.arange(2, device=x.device)  # [M, 2]
            x = x[:, :, None] + self.side(sides)  # [B, M, 2, d]
        x = self.block2(x)
        if self.position is not None:
            ranks = torch.arange(self.spec.output.rank or 0, device=x.device)
            x = self.block2(x[..., None, :] + self.position(ranks))  # [B, M, 2, r, d]
        features = self.features(x)
        return [head(features[:, of_kind]) for of_kind, head in zip(self.kinds.values(), self.heads, strict=True)]

    def unpack(self, numbers: Sequence[Tensor]) -> Written:
        """The adapters that `forward`'s numbers stand for."""
        return self.adapters([self.denormalised(kind, values) for kind, values in enumerate(numbers)])

    def denormalised(self, kind: int, numbers: Tensor) -> Tensor:
        """Numbers [B, N, P] on the scale of the adapters."""
        if not self.spec.normalised:
            return numbers
        return numbers * getattr(self, f"deviation_{kind}") + getattr(self, f"mean_{kind}")

    def adapters(self, numbers: Sequence[Tensor]) -> Written:
        """The adapters with these numbers, [B, N, P] per kind of matrix, on the adapters' own scale."""
        lora: dict[str, LowRank] = {}
        z: dict[str, Tensor] = {}
        for of_kind, head, values in zip(self.kinds.values(), self.heads, numbers, strict=True):
            for column, index in enumerate(of_kind):
                name, own = self.spec.matrices[index].name, values[:, column]  # [B, P]
                if isinstance(head, LoraHead):
                    a, b = own.split([head.rank * head.in_features, head.rank * head.out_features], 1)
                    lora[name] = LowRank(
                        a.view(-1, head.rank, head.in_features),
                        b.view(-1, head.rank, head.out_features).transpose(1, 2),
                    )
                else:
                    z[name] = 1 + own
        return lora or z

    def numbers(self, written: Written) -> list[Tensor]:
        """The inverse of `adapters`: the numbers [B, N, P] of given adapters."""
        numbers = []
        for of_kind in self.kinds.values():
            rows = []
            for index in of_kind:
                adapter = written[self.spec.matrices[index].name]
                if isinstance(adapter, LowRank):
                    rows.append(torch.cat([adapter.a.flatten(1), adapter.b.transpose(1, 2).flatten(1)], 1))
                else:
                    rows.append(adapter - 1)
            numbers.append(torch.stack(rows, 1))
        return numbers
