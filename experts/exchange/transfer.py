"""Transfers an expert from one base to another of the same shapes (arXiv 2501.06252, section 4.3, Llama to Mistral).

z_i rescales the i-th singular direction of a matrix. On another base this is meaningful only as far as that base's i-th
direction is the same one; `compare_bases` measures this, and the shuffled control tests it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experts.expert import Expert
from experts.outside.errors import UserError
from experts.svf.decomposition import decompose, each_matrix
from experts.svf.fingerprint import fingerprint, is_other_base, sketch
from experts.svf.quantised import dense_weight, shape_of


def transfer(expert: Expert, base: PreTrainedModel, name: str, shuffled: int | None = None) -> Expert:
    """`expert` as an expert of another base; it remembers where it comes from.

    Args:
        base: the base that it is to be used on, called `name`.
        shuffled: a seed with which z is permuted within each matrix: the control that should not work.

    Raises:
        UserError: if the base lacks a matrix or one is too small, or the expert is already this base's. `check_shapes`
            tells whether the shapes are the same.
    """
    expert.layers_in(base)
    found, runs = fingerprint(base), sketch(base)
    if shuffled is None and not is_other_base(expert.fingerprint, expert.sketch, found, runs):
        raise UserError(f"the expert belongs to this base already (fingerprint {found}); there is nothing to transfer")
    z, description = expert.z, expert.description
    if shuffled is not None:
        generator = torch.Generator().manual_seed(shuffled)
        z = {matrix: z[matrix][..., torch.randperm(z[matrix].shape[-1], generator=generator)] for matrix in sorted(z)}
        description = f"{description} (shuffled control, seed {shuffled})"
    origin = expert.transferred_from or f"{expert.base} ({expert.fingerprint})"
    return replace(
        expert, z=z, base=name, fingerprint=found, description=description, transferred_from=origin, sketch=runs
    )


@dataclass(frozen=True)
class Comparison:
    """How alike the singular directions of one matrix are in two bases. 1 is the same, for `spectrum` 0."""

    matrix: str
    aligned: float
    """|⟨u_i, u'_i⟩⟨v_i, v'_i⟩| of each direction that the expert has, averaged with the weights s_i²."""
    overlap: float
    """The overlap of the spaces that the k largest directions span: (‖U_kᵀU'_k‖² + ‖V_kᵀV'_k‖²) / 2k."""
    chance: float
    """The overlap of random spaces."""
    spectrum: float
    """‖s − s'‖ / ‖s‖."""
    difference: float
    """The cosine between the differences that the expert makes to the two matrices."""


def mean(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean over matrices, called `mean`."""
    names = [each.name for each in fields(Comparison) if each.name != "matrix"]
    return Comparison("mean", **{name: fmean(getattr(one, name) for one in comparisons) for name in names})


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons and their mean as text, one line per matrix."""
    columns = [each.name for each in fields(Comparison) if each.name != "matrix"]
    head = f"{'matrix':40}" + "".join(f"{name:>12}" for name in columns)
    rows = [
        f"{one.matrix:40}" + "".join(f"{getattr(one, name):12.3f}" for name in columns)
        for one in (*comparisons, mean(comparisons))
    ]
    return "\n".join([head, *rows])


def compare_bases(expert: Expert, trained_on: PreTrainedModel, other: PreTrainedModel, k: int = 16) -> list[Comparison]:
    """Compares the matrices that an expert adapts between the base it was trained on and another.

    A matrix of zeros in the former is left out: it has nothing to rescale, and no directions to compare.

    Args:
        k: how many of the largest directions span the spaces that `overlap` compares, if a matrix has so many.

    Raises:
        UserError: if the expert does not fit a base, a matrix has different shapes in the two, or all are zeros; or if
            it adapts stacks of matrices, which are not compared.
    """
    if stacks := [matrix for matrix, z in expert.z.items() if z.ndim == 2]:
        raise UserError(
            f"{stacks[0]} is a stack of mixture-of-experts matrices, and only linear layers can be compared"
        )
    check_shapes(expert, trained_on, other)
    ours, theirs = expert.layers_in(trained_on), expert.layers_in(other)

    def of(matrix: str) -> Comparison:
        return _compare(matrix, expert.z[matrix], dense_weight(ours[matrix]), dense_weight(theirs[matrix]), k)

    matrices = [matrix for matrix in expert.z if dense_weight(ours[matrix]).any()]
    if not matrices:
        raise UserError("all matrices that the expert adapts are zero in its own base: there is nothing to compare")
    return each_matrix(of, matrices, trained_on.device)


def check_shapes(expert: Expert, trained_on: PreTrainedModel, other: PreTrainedModel) -> None:
    """Raises UserError if a matrix that an expert adapts has different shapes in two bases, whatever their weights."""
    ours, theirs = expert.layers_in(trained_on), expert.layers_in(other)
    for matrix in expert.z:
        if shape_of(ours[matrix]) != shape_of(theirs[matrix]):
            shapes = " and ".join(str([*shape_of(layers[matrix])]) for layers in (ours, theirs))
            raise UserError(
                f"{matrix} has the shapes {shapes}; an expert can be transferred only between matrices of the same "
                "shape"
            )


def _compare(matrix: str, z: Tensor, ours: Tensor, theirs: Tensor, k: int) -> Comparison:
    (u, s, vt), (other_u, other_s, other_vt) = (
        (factor.double() for factor in decompose(weight, len(z))) for weight in (ours, theirs)
    )
    left, right = u.T @ other_u, vt @ other_vt.T  # [r, r]: ⟨u_i, u'_j⟩ and ⟨v_i, v'_j⟩
    energy = s.square() / s.square().sum()
    k = min(k, len(z))
    scale, other_scale = s * (z - 1).to(s), other_s * (z - 1).to(s)  # [r]
    sizes = scale.norm() * other_scale.norm()
    return Comparison(
        matrix,
        aligned=(energy @ (left.diagonal() * right.diagonal()).abs()).item(),
        overlap=((left[:k, :k].square().sum() + right[:k, :k].square().sum()) / (2 * k)).item(),
        chance=sum(k / side for side in ours.shape) / 2,
        spectrum=((s - other_s).norm() / s.norm()).item(),
        difference=(scale @ (left * right) @ other_scale / sizes).item() if sizes else 1.0,
    )
