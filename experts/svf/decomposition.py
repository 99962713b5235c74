"""W = U diag(s) Vᵀ, once per matrix and machine.

A decomposition is kept in the cache folder, one safetensors file a matrix, under the hash of the matrix's own
bytes: it can never be stale, is shared by every expert and subset of layers, and is written once even if several
processes ask for it.

The largest 64, 128, 256, … singular values are computed and kept, or all of them: the first that cover what was asked
for. Where they are few for the size of the matrix, the others are never computed (`truncated.py`), and a larger rank
continues from the triplets that are there. These stay the same bit for bit until all singular values are asked for.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from experts.outside.errors import UserError
from experts.outside.files import atomic_file, cache_folder
from experts.svf.truncated import largest_triplets

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

FIRST = 64  # the fewest singular values that are kept; then twice as many, and so on
FEW = 16  # truncated if min(m, n) is at least so many times the rank: below, LAPACK is about as fast


class Factors(NamedTuple):
    """W ≈ U diag(s) Vᵀ, exact for r = min(m, n); s is float32 and decreases, U and Vᵀ have W's dtype and device.

    For a stack of matrices [E, m, n], all three have a leading dimension E.
    """

    u: Tensor  # [m, r]
    s: Tensor  # [r]
    vt: Tensor  # [r, n]


def decompose(weight: Tensor, rank: int | None = None) -> Factors:
    """The `rank` largest singular triplets of `weight` [m, n], from the cache or computed on the weight's device.

    A stack [E, m, n] is decomposed matrix by matrix, and each is kept like any other.

    Raises:
        UserError: if the weight has no values to decompose (meta device) or is not finite.
    """
    if weight.is_meta:
        raise UserError("the weights of this model are not loaded (meta device): load it without offloading first")
    if weight.ndim == 3:
        return Factors(*map(torch.stack, zip(*(decompose(matrix, rank) for matrix in weight), strict=True)))
    weight = weight.detach().contiguous()
    most = min(weight.shape)
    rank = min(rank or most, most)
    kept = _steps(rank, most)[-1]
    folder, key = cache_folder() / "svd", _key(weight)
    path = folder / f"{key}.parts.safetensors"
    factors = _read(path, kept)
    if factors is None or len(factors.s) < kept:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                factors = _read(path, kept)  # another process may have written it while this one waited
                if factors is None or len(factors.s) < kept:
                    whole = _read(folder / f"{key}.safetensors", most)  # as it was kept once, whatever the rank
                    factors = _largest(weight, kept, factors) if whole is None else _first(whole, kept)
                    if whole is None or kept < most:
                        _write(path, factors)
        except (OSError, SafetensorError) as error:  # no room, no rights, no locks
            _warn_once(f"cannot write to {folder} ({error}): the base is decomposed again at every start")
            if factors is None or len(factors.s) < kept:
                factors = _largest(weight, kept, factors)
    precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # LAPACK's own Vᵀ lies in memory column by column, the file's row by row, and rounding in products depends on that:
    # what has just been computed must be laid out like what is read. And a part must not keep the rest in memory.
    u, s, vt = factors if rank == len(factors.s) else (factor.clone() for factor in _first(factors, rank))
    return Factors(
        u.to(weight.device, weight.dtype).contiguous(),
        s.to(weight.device, precise),
        vt.to(weight.device, weight.dtype).contiguous(),
    )


def each_matrix(work: Callable[[T], R], matrices: Sequence[T], device: torch.device) -> list[R]:
    """The results of `work`, which decomposes a matrix, for each matrix. Shows progress if a person is watching.

    On a CPU each core takes its own matrices: LAPACK spread over busy cores is 20 to 100 times slower.
    """
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads if on_cpu else 1) as pool:
            made = pool.map(work, matrices)
            return list(tqdm(made, "decomposing", total=len(matrices), unit="matrix", leave=False, disable=None))
    finally:
        torch.set_num_threads(threads)
        _give_memory_back()


def _give_memory_back() -> None:
    """Gives back the memory that LAPACK and the copies freed: glibc keeps hundreds of megabytes for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _steps(rank: int, most: int) -> list[int]:
    """64, 128, 256, … up to the first that is `rank` or more, and never more than the `most` that there are."""
    steps = [min(FIRST, most)]
    while steps[-1] < rank:
        steps.append(min(2 * steps[-1], most))
    return steps


def _first(factors: Factors, rank: int) -> Factors:
    return Factors(factors.u[:, :rank], factors.s[:rank], factors.vt[:rank])


def _largest(weight: Tensor, rank: int, known: Factors | None) -> Factors:
    """The `rank` largest triplets, in float32 or float64. The largest entry of each v is positive."""
    if rank * FEW > min(weight.shape):
        return _first(_signed(_svd(weight)), rank)
    return _truncated(weight, rank, known)


def _svd(weight: Tensor) -> Factors:
    return Factors(*torch.linalg.svd(_finite(weight), full_matrices=False))


def _truncated(weight: Tensor, rank: int, known: Factors | None) -> Factors:
    """The same without the others, step by step, so that what is kept does not depend on the ranks asked for before."""
    weight = _finite(weight)
    m, n = weight.shape
    if known is None:
        factors = Factors(weight.new_zeros(m, 0), weight.new_zeros(0), weight.new_zeros(0, n))
    else:
        factors = Factors(*(factor.to(weight) for factor in known))
    for step in _steps(rank, min(m, n)):
        if step > len(factors.s):
            factors = _signed(Factors(*largest_triplets(weight, step, *factors)))
    return factors


def _finite(weight: Tensor) -> Tensor:
    """The weight in float32 or float64."""
    precise = weight if weight.dtype == torch.float64 else weight.float()
    if not torch.isfinite(precise).all():
        raise UserError("a weight matrix holds NaN or infinity and has no singular values; check the checkpoint")
    return precise


def _signed(factors: Factors) -> Factors:
    u, s, vt = factors
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))  # [r, 1]
    sign = torch.where(largest < 0, -1.0, 1.0).to(vt)
    return Factors(u * sign.T, s, vt * sign)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _key(weight: Tensor) -> str:
    """A hash that changes with any bit of the matrix, its shape or its dtype."""
    digest = hashlib.sha256(f"{weight.dtype} {list(weight.shape)}".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def _checksum(factors: Factors) -> str:
    digest = hashlib.sha256()
    for tensor in factors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _write(path: Path, factors: Factors) -> None:
    """Writes the factors in parts, each with a checksum, so that a small rank reads no more than it needs."""
    tensors: dict[str, Tensor] = {}
    sums: dict[str, str] = {}
    ends = _steps(len(factors.s), len(factors.s))
    for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        part = Factors(factors.u[:, start:end], factors.s[start:end], factors.vt[start:end])
        part = Factors(*(tensor.cpu().contiguous() for tensor in part))
        tensors |= {f"{name}.{k}": tensor for name, tensor in part._asdict().items()}
        sums[f"sha256.{k}"] = _checksum(part)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=sums)


def _read(path: Path, rank: int | None = None) -> Factors | None:
    """The cached factors, at least `rank` if there are as many; None if there are none or the file is damaged."""
    if not os.path.exists(path):  # or access is denied
        return None
    try:
        with safe_open(path, "pt") as file:
            sums = file.metadata() or {}
            endings = [""] if "sha256" in sums else [f".{k}" for k in range(len(sums))]  # older files have no parts
            parts: list[Factors] = []
            while endings and (rank is None or sum(len(part.s) for part in parts) < rank):
                ending = endings.pop(0)
                part = Factors(*(file.get_tensor(f"{name}{ending}") for name in Factors._fields))
                if _checksum(part) != sums.get(f"sha256{ending}"):
                    raise ValueError("a part is not as it was written")
                parts.append(part)
            us, ss, vts = zip(*parts, strict=True)
            return Factors(torch.cat(us, 1), torch.cat(ss), torch.cat(vts))  # copies: the file may be replaced
    except (SafetensorError, OSError, ValueError):
        pass
    logger.warning("%s is damaged; decomposing that matrix again", path)
    return None
