"""The mixture, which a dispatcher decides: how much of each expert each prompt gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.outside.errors import UserError, check_whole, short
from experts.outside.files import write_json
from experts.outside.reading import read_json


@dataclass(frozen=True, eq=False)
class Mixture:
    """One weight per prompt and expert: z = 1 + Σ_k α_k (z_k − 1). Where Σα < 1, the rest belongs to the base.

    Args:
        names: K experts, each once.
        weights: α [B, K], one row per prompt; a row of zeros is the base.
        per_matrix: α [B, K] of the matrices that have weights of their own, by their names in the base; `weights` then
            holds the mean over all matrices.
        confidence: how sure the dispatcher is of each row, [B], from 0 to 1; None if no dispatcher was asked.

    Raises:
        UserError: if names repeat or are no strings, weights are not finite or not [B, K], or confidence is not [B].
    """

    names: tuple[str, ...]
    weights: Tensor
    per_matrix: Mapping[str, Tensor] = field(default_factory=dict)
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise UserError(f"the names of a mixture must be strings, not {short(self.names)}")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"a mixture must name each expert once, not {', '.join(self.names)}")
        if not isinstance(self.weights, Tensor) or self.weights.ndim != 2 or self.weights.shape[1] != len(self.names):
            raise UserError(
                f"a mixture of {len(self.names)} experts needs a tensor of weights [prompts, {len(self.names)}]"
            )
        for weights in (self.weights, *self.per_matrix.values()):
            if not isinstance(weights, Tensor) or weights.shape != self.weights.shape:
                raise UserError("the weights of a matrix must have the same shape as those of the mixture")
            if weights.is_complex() or not torch.isfinite(weights).all():
                raise UserError("the weights of a mixture must be finite numbers")
        sure = self.confidence
        if sure is not None and (not isinstance(sure, Tensor) or sure.shape != self.weights.shape[:1]):
            raise UserError(f"a mixture for {len(self)} prompts needs a tensor of confidences [{len(self)}]")

    def __eq__(self, other: object) -> bool:
        """Whether both say the same of the same experts, in the same order."""
        if not isinstance(other, Mixture):
            return NotImplemented
        own, theirs = ((*each.per_matrix.values(), each.weights, each.confidence) for each in (self, other))
        named = (tuple(self.names), [*self.per_matrix]) == (tuple(other.names), [*other.per_matrix])
        return named and all(map(_equal, own, theirs))

    @classmethod
    def of(cls, weights: Mapping[str, float], prompts: int = 1) -> Mixture:
        """The same weights for every prompt; `Mixture.of({})` is the base.

        Raises:
            UserError: if a name is not a string, a weight not a finite number, or `prompts` not a whole one.
        """
        check_whole("prompts", prompts, least=0)
        if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
            raise UserError(f'a mixture is a mapping of experts to weights, {{"name": 0.5}}, not {short(weights)}')
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise UserError(f"the weight of {name!r:.60} must be a number, not {weight!r:.60}")
        try:
            row = [float(weight) for weight in weights.values()]
        except OverflowError as error:
            raise UserError("the weights of a mixture must be finite numbers") from error
        return cls(tuple(weights), torch.tensor([row] * prompts).view(prompts, len(weights)))

    @classmethod
    def read(cls, path: str | Path) -> Mixture:
        """Reads the mixture for one prompt from a file of `write`'s: `{"weights": {"sums": 0.7, "letters": 0.3}}`.

        Raises:
            UserError: if the file does not hold one.
        """
        document = read_json(Path(path))
        try:
            mixture = cls.of(document["weights"])
            own = {
                matrix: cls.of({name: weights[name] for name in mixture.names}).weights
                for matrix, weights in document.get("per_matrix", {}).items()
            }
            return cls(mixture.names, mixture.weights, own)
        except UserError as error:
            raise UserError(f"{path} is not a mixture: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise UserError(f'{path} is not a mixture: it must hold {{"weights": {{"expert": number}}}}') from error

    def write(self, path: str | Path) -> None:
        """Writes the mixture, which must be for one prompt."""
        document: dict[str, object] = {"weights": dict(zip(self.names, self.weights[0].tolist(), strict=True))}
        if self.per_matrix:
            document["per_matrix"] = {
                matrix: dict(zip(self.names, weights[0].tolist(), strict=True))
                for matrix, weights in self.per_matrix.items()
            }
        write_json(Path(path), document)

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.weights)

    def __getitem__(self, row: int) -> dict[str, float]:
        """The experts that have a part in one prompt's answer → their weights."""
        return {name: weight for name, weight in zip(self.names, self.weights[row].tolist(), strict=True) if weight}

    def __str__(self) -> str:
        """One line per prompt: `sums 0.70, letters 0.30 (confidence 0.98)`."""
        lines = []
        for row in range(len(self)):
            experts = ", ".join(f"{name} {weight:.2f}" for name, weight in self[row].items()) or "base"
            sure = "" if self.confidence is None else f" (confidence {self.confidence[row]:.2f})"
            lines.append(experts + sure)
        return "\n".join(lines)

    def rows(self, rows: Sequence[int]) -> Mixture:
        """The mixture for some of the prompts."""
        rows = list(rows)
        own = {matrix: weights[rows] for matrix, weights in self.per_matrix.items()}
        return Mixture(self.names, self.weights[rows], own, None if self.confidence is None else self.confidence[rows])

    @classmethod
    def together(cls, mixtures: Sequence[Mixture]) -> Mixture:
        """The rows of several mixtures, one below the other."""
        names = tuple(dict.fromkeys(name for mixture in mixtures for name in mixture.parts))
        matrices = dict.fromkeys(matrix for mixture in mixtures for matrix in mixture.per_matrix)

        def stacked(matrix: str | None) -> Tensor:
            rows = []
            for mixture in mixtures:
                own = mixture.weights if matrix is None else mixture.per_matrix.get(matrix, mixture.weights)
                wide = own.new_zeros(len(own), len(names))
                for k, name in enumerate(mixture.names):
                    if name in names:
                        wide[:, names.index(name)] = own[:, k]
                rows.append(wide)
            return torch.cat(rows)

        return cls(names, stacked(None), {matrix: stacked(matrix) for matrix in matrices})

    def expand(self, prompts: int) -> Mixture:
        """Repeats a mixture for one prompt, for as many prompts."""
        return self.rows([0] * prompts)

    def z(self, of: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Matrix → z [..., r] = 1 + Σ_k α_k (z_k − 1); the mixture must be for one prompt.

        Args:
            of: an expert's name → its z of each matrix. Where it has no z, or fewer values than another, they are 1.
        """
        total: dict[str, Tensor] = {}  # Σ_k α_k (z_k − 1)
        for k, name in enumerate(self.names):
            for matrix, z in of(name).items():
                part = self.per_matrix.get(matrix, self.weights)[0, k] * (z - 1)
                total[matrix] = sum_of(total.get(matrix, part[..., :0]), part)
        return {matrix: 1 + delta for matrix, delta in total.items()}

    def groups(self) -> list[int]:
        """The group number of each row; rows of one group have the same weights everywhere."""
        table = torch.cat([self.weights, *self.per_matrix.values()], dim=1)  # [B, K·(1 + matrices)]
        return torch.unique(table, dim=0, return_inverse=True)[1].tolist() if table.numel() else [0] * len(self)

    @property
    def parts(self) -> list[str]:
        """The names of the experts that have a part in some row."""
        everywhere = (self.weights, *self.per_matrix.values())
        return [name for k, name in enumerate(self.names) if any(weights[:, k].any() for weights in everywhere)]

    @property
    def is_base(self) -> bool:
        """Whether every row is the base."""
        return not self.parts


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def sum_of(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two differences z − 1, [..., r] each; the one of smaller rank is padded with zeros."""
    r = max(one.shape[-1], other.shape[-1])
    return F.pad(one, (0, r - one.shape[-1])) + F.pad(other, (0, r - other.shape[-1]))
