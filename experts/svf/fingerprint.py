"""What tells one base from another.

A base is its linear weights. Two models are one base

1. if their *fingerprints* are the same, a hash over all linear weights rounded to bfloat16, or else
2. if one is a rounding of the other, or both are roundings of a third. A *sketch*, kept with a library and with an
   expert, tells: the fingerprint of the base's float16 copy, and a few weights of each matrix for files of eight bits
   and less. A rounding is accepted, and the user is told.

Everything else is another base and is refused. Where no sketch is kept, so is every other fingerprint.

Rounding to the nearest, with one scale for a block of weights, makes some weights of the block equal and never reverses
the order of two, while training does. `is_rounding` rests on this, with runs of 16 neighbours. A float32 original of
which SmolLM2-135M's Q4_1 file is a rounding has 25,200 pairs in its sketch, and was compared with

| | distance | values in a run | pairs reversed |
|---|---|---|---|
| int8, Q8_0, FP8, Q6_K | 0.006 to 0.027 | 14.0 to 15.4 | 0 |
| Q4_1, Q4_0, NF4 | 0.080 to 0.095 | 9.2 to 9.6 | 0 |
| three bits, two bits | 0.18, 0.31 | 6.7, 4.0 | 0 |
| Q4_1 of a copy changed by 0.3 %, 0.5 %, 1 %, 2 % | 0.080 to 0.083 | 9.6 | 0, 1, 6, 15 |

The distance is ‖W' − W‖ / ‖W‖; the changes are normally distributed. Weights that are equal in a 4-bit file lie a third
of a step or more apart in an original. If the file itself is trained further, they hardly part: by 0.005 of a step
after a change of 0.1 %, 0.10 after 2 %, and 0.21 after 4 %, where 19 pairs are reversed as well.

So a descendant is refused, however little it was trained, if both bases have 16 or 32 bits, or if it descends from a
4-bit file. If one of the two has few bits and the other descends from its original, changes below half a percent can go
unnoticed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError
from experts.outside.files import atomic_file
from experts.svf.layer import SVFLinear
from experts.svf.names import plain_name
from experts.svf.quantised import dense_weight, dequantised, is_quantised, is_transposed, rounded, shape_of
from experts.svf.stacks import SVFStack, fused_matrices

logger = logging.getLogger(__name__)

FILE = "base_sketch.safetensors"
RUN = 16  # neighbours that share one scale even in the smallest blocks of a 4-bit file
RUNS = 256  # the most runs in one sketch: 16 kB
FARTHEST = 0.35  # ‖W' − W‖ / ‖W‖ of a rounding
ALONG = 0.4  # |cosine| of W' − W and W, which is 1 for a base that is scaled; three bits have 0.2
VALUES = 15.7  # the most values in a run of eight bits or less, on average; bfloat16 has 15.9
COARSE = 12  # the most values in a run of few bits
SPLIT = 0.2  # of a step: the least between weights that a rounding to few bits makes equal; a third is expected
ENOUGH = 16  # runs needed to tell


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is kept of a base, so that its roundings can be recognised."""

    runs: Tensor
    """[runs, 16], float32: neighbours, from each matrix or, if there are more, from 256 matrices."""
    float16: str
    """The fingerprint of its float16 copy."""


def fingerprint(model: nn.Module) -> str:
    """A hash over the linear weights of a base, the same with and without adapters, in float32 and in bfloat16.

    Every `nn.Linear` and `Conv1D` counts, whatever an expert adapts, and so do the fused tensors of a mixture of
    experts; a quantised layer counts with the values its few bits stand for. The output embeddings do not count: their
    size follows the vocabulary, and an added padding token does not make another base.
    """
    return _hash(_matrices(model), torch.bfloat16)


def sketch(model: nn.Module) -> Sketch:
    """The sketch of a base, the same with and without adapters.

    A layer that keeps triplets beside its bits counts as if it were rounded whole, since triplets reverse the order of
    weights.
    """
    matrices = _matrices(model, rounded)
    return Sketch(_runs(matrices), _hash(matrices, torch.float16))


def _hash(matrices: Mapping[str, _Matrix], dtype: torch.dtype) -> str:
    """A hash over the matrices, rounded to `dtype` and then to bfloat16."""
    digest = hashlib.sha256()
    for name in sorted(matrices):
        rounded = matrices[name].read().to("cpu", dtype).to(torch.bfloat16).contiguous()
        digest.update(f"{name} {list(rounded.shape)}".encode())
        digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _runs(matrices: Mapping[str, _Matrix]) -> Tensor:
    names = sorted(name for name, matrix in matrices.items() if matrix.numel >= RUN)
    if len(names) > RUNS:
        names = [names[k * len(names) // RUNS] for k in range(RUNS)]
    runs = []
    for k, name in enumerate(names):
        weight = matrices[name].read()
        weight = weight.T if matrices[name].transposed else weight  # files are rounded along a matrix's inputs
        rows = weight.reshape(-1, weight.shape[-1] if weight.shape[-1] >= RUN else weight.numel())
        each = max(1, RUNS // len(names))
        for j in range(each):
            row = (2 * j + 1) * len(rows) // (2 * each)
            start = (7 * k + 3 * j) % (rows.shape[1] // RUN) * RUN
            runs.append(rows[row, start : start + RUN].to("cpu", torch.float32))
    return torch.stack(runs) if runs else torch.zeros(0, RUN)


def is_rounding(one: Sketch, other: Sketch) -> bool:
    """Whether two bases with different fingerprints are roundings of one base."""
    if one.float16 == other.float16:
        return True
    a, b = one.runs, other.runs
    if a.shape != b.shape:
        return False
    values = [sum(len(run.unique()) for run in runs) / max(1, len(runs)) for runs in (a, b)]
    distance, along = (b - a).norm() / a.norm(), F.cosine_similarity((b - a).flatten(), a.flatten(), dim=0).abs()
    # A distance of 0 would mean a change where no sample was taken, whereas rounding changes weights everywhere.
    if not (min(values) <= VALUES and 0 < distance <= FARTHEST and along <= ALONG):
        return False
    ours, theirs = (runs[:, :, None] - runs[:, None, :] for runs in (a, b))  # [runs, 16, 16], all pairs
    if (ours * theirs < 0).any():
        return False
    return _spread(a, ours, theirs) >= SPLIT and _spread(b, theirs, ours) >= SPLIT


def _spread(coarse: Tensor, pairs: Tensor, others: Tensor) -> float:
    """How far apart weights that are equal in one base's few-bit runs are in the other base, in steps of the first.

    Infinite if too few runs tell.

    Args:
        coarse: the runs of the first base [runs, 16].
        pairs: the differences within them [runs, 16, 16].
        others: the differences in the other base, likewise.
    """
    steps = torch.where(pairs > 0, pairs, torch.inf).flatten(1).min(1).values  # [runs]
    split = (pairs == 0) & (others != 0)
    few = torch.tensor([len(run.unique()) <= COARSE for run in coarse])
    told = few & split.flatten(1).any(1) & steps.isfinite()
    if told.sum() < ENOUGH:
        return torch.inf
    mean = (others.abs() * split).sum((1, 2)) / split.sum((1, 2))
    return (mean / steps)[told].mean().item()


def is_other_base(wanted: str | None, its: Sketch | None, found: str | None, own: Sketch | None) -> bool:
    """Applies the one rule to the fingerprints and sketches of two bases. A rounding is accepted and logged, once."""
    if wanted == found:
        return False
    if its is None or own is None or not is_rounding(its, own):
        return True
    _say_rounding(wanted, found)
    return False


@cache
def _say_rounding(wanted: str, found: str) -> None:
    logger.warning(
        "the bases with fingerprints %s and %s are roundings of one base: experts of the second are accepted on "
        "the first",
        found,
        wanted,
    )


def refuse_other_base(what: str, wanted: str, its: Sketch | None, base: nn.Module) -> str:
    """The fingerprint of `base`, after checking that it is the base that `what` belongs to, or a rounding of that.

    Raises:
        UserError: naming both fingerprints, if it is another base.
    """
    found = fingerprint(base)
    if is_other_base(wanted, its, found, None if its is None else sketch(base)):
        raise other_base(what, wanted, found)
    return found


def other_base(what: str, wanted: str, found: str) -> UserError:
    """The error that names both fingerprints: the one that `what` belongs to, and the base's own."""
    return UserError(f"{what} belongs to a base with fingerprint {wanted}, but this one has {found}; load that base")


def write_sketch(folder: Path, kept: Sketch) -> None:
    """Keeps a sketch in a library's or an expert's folder."""
    with atomic_file(folder / FILE) as temporary:
        save_file({"runs": kept.runs.contiguous()}, temporary, metadata={"float16": kept.float16})


def read_sketch(folder: Path) -> Sketch | None:
    """The sketch in a folder; None where none is kept.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            runs, float16 = file.get_tensor("runs"), file.metadata()["float16"]
        if runs.ndim != 2 or runs.dtype != torch.float32:
            raise TypeError("runs must be float32 [runs, 16]")
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to go by the fingerprint alone") from error
    return Sketch(runs, float16)


@dataclass(frozen=True)
class _Matrix:
    """A weight as its module has it; a quantised base's is made when it is asked for."""

    read: Callable[[], Tensor]
    numel: int
    transposed: bool = False
    """Whether the rows are the inputs."""


def _matrices(model: nn.Module, of_quantised: Callable[[nn.Module], Tensor] = dequantised) -> dict[str, _Matrix]:
    """Each matrix by its name in the plain base.

    Parts of adapters are passed over; a merged layer gives its own weight.
    """

    def of(layer: nn.Module, read: Callable[[], Tensor]) -> _Matrix:
        """The matrix of a layer, given the function that reads its W [m, n] if that is dense."""
        transposed = is_transposed(layer)
        m, n = shape_of(layer)
        if is_quantised(layer):
            read = partial(of_quantised, layer)
        return _Matrix((lambda: read().T) if transposed else read, m * n, transposed)

    head = getattr(model, "get_output_embeddings", lambda: None)()
    matrices: dict[str, _Matrix] = {}
    adapted: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(adapted) and adapted:
            continue
        plain = plain_name(name).removeprefix("base_model.model.")
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{name}.",)
            base = module.get_base_layer()
            if head in (module, base):
                continue
            if isinstance(module, SVFStack):
                pristine = module.pristine_weight
                matrices[plain] = _Matrix(pristine.detach, pristine.numel())
            elif isinstance(module, SVFLinear):
                matrices[plain] = of(base, partial(getattr, module, "pristine_weight"))
            elif isinstance(base, nn.Linear | Conv1D):
                matrices[plain] = of(base, partial(dense_weight, base))
        elif isinstance(module, nn.Linear | Conv1D) and module is not head:
            matrices[plain] = of(module, partial(dense_weight, module))
        else:
            plain = plain.removesuffix(".base_layer")  # the module with adapted stacks, which come after it
            for key, tensor in fused_matrices(module).items():
                matrices[f"{plain}.{key}"] = _Matrix(tensor.detach, tensor.numel())
    return matrices
