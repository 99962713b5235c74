"""W = U diag(s) Vᵀ, once per matrix and machine.

A decomposition is kept in the cache folder, one safetensors file a matrix, under the hash of the matrix's own
bytes: it can never be stale, is shared by every expert, subset of layers and rank, and is written once even if
several processes ask for it.
"""

from __future__ import annotations

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

from experts.outside.files import atomic_file, cache_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class Factors(NamedTuple):
    """W ≈ U diag(s) Vᵀ, exact for r = min(m, n); s is float32 and falls, U and Vᵀ have W's dtype and device."""

    u: Tensor  # [m, r]
    s: Tensor  # [r]
    vt: Tensor  # [r, n]


def decompose(weight: Tensor, rank: int | None = None) -> Factors:
    """The `rank` largest singular triplets of `weight` [m, n], from the cache or computed on the weight's device.

    Raises:
        ValueError: if the weight has no values to decompose (meta device) or is not finite.
    """
    if weight.is_meta:
        raise ValueError("the weights of this model are not loaded (meta device): load it without offloading first")
    weight = weight.detach().contiguous()
    path = cache_folder() / "svd" / f"{_key(weight)}.safetensors"
    factors = _read(path)
    if factors is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                factors = _read(path)  # another process may have written it while this one waited
                if factors is None:
                    factors = _svd(weight)
                    _write(path, factors)
        except (OSError, SafetensorError) as error:  # no room, no rights, no locks
            _warn_once(f"nothing can be kept in {path.parent} ({error}): every start decomposes again")
            factors = factors or _svd(weight)
    precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
    u, s, vt = factors
    rank = min(rank or len(s), len(s))
    # LAPACK's own Vᵀ lies in memory column by column, the one of the file row by row, and products round by that: what
    # has just been computed must be laid out as what is read.
    return Factors(
        u[:, :rank].to(weight.device, weight.dtype, copy=True, memory_format=torch.contiguous_format),
        s[:rank].to(weight.device, precise, copy=True),
        vt[:rank].to(weight.device, weight.dtype, copy=True, memory_format=torch.contiguous_format),
    )


def each_matrix(work: Callable[[T], R], matrices: Sequence[T], device: torch.device) -> list[R]:
    """What `work` makes of each matrix, where that is to decompose it. Shows its progress where a person is watching.

    On a CPU each core takes matrices of its own: LAPACK spread over busy cores is 20 to 100 times slower.
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


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _svd(weight: Tensor) -> Factors:
    precise = weight if weight.dtype == torch.float64 else weight.float()
    if not torch.isfinite(precise).all():
        raise ValueError("a weight matrix holds NaN or infinity and has no singular values; check the checkpoint")
    return Factors(*torch.linalg.svd(precise, full_matrices=False))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _key(weight: Tensor) -> str:
    """Changes with any bit of the matrix, its shape or its dtype."""
    digest = hashlib.sha256(f"{weight.dtype} {list(weight.shape)}".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def _checksum(factors: Factors) -> str:
    digest = hashlib.sha256()
    for tensor in factors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _write(path: Path, factors: Factors) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in factors._asdict().items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": _checksum(factors)})


def _read(path: Path) -> Factors | None:
    """The cached factors, or None where there are none or the file is damaged."""
    if not os.path.exists(path):  # or may not be looked for
        return None
    try:
        with safe_open(path, "pt") as file:
            factors = Factors(*(file.get_tensor(name) for name in Factors._fields))
            if _checksum(factors) == (file.metadata() or {}).get("sha256"):
                return factors
    except (SafetensorError, OSError):
        pass
    logger.warning("%s is damaged; decomposing that matrix again", path)
    return None
