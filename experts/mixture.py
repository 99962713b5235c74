"""What a dispatcher decides: for each prompt, how much of which expert."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experts.errors import UserError
from experts.files import write_json


@dataclass(frozen=True)
class Mixture:
    """One weight per prompt and expert: z = 1 + Σ_k α_k (z_k − 1). What is left over of Σα = 1 belongs to the base.

    Args:
        names: K experts, each once.
        weights: α [B, K], one row a prompt; a row of zeros is the base.

    Raises:
        UserError: if names repeat, or the weights are not finite or not [B, K].
    """

    names: tuple[str, ...]
    weights: Tensor

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise UserError(f"a mixture names each expert once, not {', '.join(self.names)}")
        if self.weights.ndim != 2 or self.weights.shape[1] != len(self.names):
            raise UserError(f"a mixture of {len(self.names)} experts needs weights [prompts, {len(self.names)}]")
        if not torch.isfinite(self.weights).all():
            raise UserError("the weights of a mixture must be finite numbers")

    @classmethod
    def of(cls, weights: Mapping[str, float], prompts: int = 1) -> Mixture:
        """The same weights for every prompt; `Mixture.of({})` is the base."""
        return cls(tuple(weights), torch.tensor([list(weights.values())] * prompts).view(prompts, len(weights)))

    @classmethod
    def read(cls, path: Path) -> Mixture:
        """The mixture for one prompt that `write` left in a file, `{"weights": {"sums": 0.7, "letters": 0.3}}`.

        Raises:
            UserError: if the file does not hold one.
        """
        try:
            weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
            return cls.of({str(name): float(weight) for name, weight in weights.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f'{path} is not a mixture: it must hold {{"weights": {{"expert": number}}}}') from error

    def write(self, path: Path) -> None:
        """Writes the mixture of the only prompt."""
        write_json(path, {"weights": dict(zip(self.names, self.weights[0].tolist(), strict=True))})

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.weights)

    def __getitem__(self, row: int) -> dict[str, float]:
        """The experts that have a part in one prompt's answer, and their weights."""
        return {name: weight for name, weight in zip(self.names, self.weights[row].tolist(), strict=True) if weight}

    def rows(self, rows: Sequence[int]) -> Mixture:
        """The mixture for some of the prompts."""
        return Mixture(self.names, self.weights[list(rows)])

    def expand(self, prompts: int) -> Mixture:
        """A mixture for one prompt, for as many as there are."""
        return Mixture(self.names, self.weights.expand(prompts, -1))
