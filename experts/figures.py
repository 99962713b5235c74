"""Figures that describe the adapters of a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from experts.exchange.lora import Lora
from experts.svf import SVFConfig


@dataclass(frozen=True)
class MatrixFigures:
    """The z of one matrix or stack: how many values a matrix has, the smallest and the largest."""

    r: int
    min: float
    max: float


@dataclass(frozen=True)
class ExpertFigures:
    """What an expert is for, and its z in figures."""

    name: str
    domain: str | None
    description: str | None
    rank: int | None
    parameters: int
    matrices: dict[str, MatrixFigures]

    @classmethod
    def of(cls, name: str, config: SVFConfig, z: Mapping[str, Tensor]) -> ExpertFigures:
        matrices = {
            matrix: MatrixFigures(own.shape[-1], own.min().item(), own.max().item()) for matrix, own in z.items()
        }
        parameters = sum(vector.numel() for vector in z.values())
        return cls(name, config.domain, config.description, config.rank, parameters, matrices)


@dataclass(frozen=True)
class LoraFigures:
    """What a LoRA is for, and how large it is."""

    name: str
    description: str | None
    parameters: int
    matrices: dict[str, int]
    """Matrix name → rank."""

    @classmethod
    def of(cls, name: str, lora: Lora) -> LoraFigures:
        parameters = sum(a.numel() + lora.b[matrix].numel() for matrix, a in lora.a.items())
        return cls(name, lora.description or None, parameters, lora.ranks)
