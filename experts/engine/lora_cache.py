"""Mixtures as LoRAs on disk, made when they are asked for, and a limited number at a time.

Experts limited to the largest singular values share the factors of their base, so a mixture of any number of them is
one exact LoRA, A = Vᵀ and B = U diag(s · Σ_k α_k (z_k − 1)), with the largest rank among them. LoRAs in the mixture
come after it and add their ranks: A = [Vᵀ; A_1; …], B = [U diag(…), α_1 B_1, …]. Engines that know nothing of SVF can
serve this.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.attaching import check_lora
from experts.exchange.lora import Lora, joined, mixed_loras
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError, unknown
from experts.svf.decomposition import decompose, each_matrix
from experts.svf.mixing import LoraFactors
from experts.svf.quantised import dense_weight

PREFIX = "mix:"


def mixture_name(mixture: Mixture) -> str:
    """The unique name of a mixture for one prompt: `mix:code=0.3,math=0.7`, or "" for the base.

    Experts are in alphabetical order, and a weight has the digits that tell it from every other float32.
    """
    weights = sorted(mixture[0].items())
    text = ",".join(f"{name}={np.format_float_positional(np.float32(weight), trim='-')}" for name, weight in weights)
    if mixture.per_matrix:
        own = "".join(f"{matrix}{alpha[0].tolist()}" for matrix, alpha in sorted(mixture.per_matrix.items()))
        text += f",{hashlib.sha256((str(mixture.names) + own).encode()).hexdigest()[:16]}"
    return f"{PREFIX}{text}" if text else ""


def read_mixture_name(name: str, library: ExpertLibrary) -> Mixture:
    """The mixture that `mix:code=0.3,math=0.7` or an expert's name stands for.

    Raises:
        UserError: if it is neither, or names an expert that the library does not have.
    """
    if not name.startswith(PREFIX):
        library.path(name)
        return Mixture.of({name: 1.0})
    weights: list[tuple[str, float]] = []
    for part in name.removeprefix(PREFIX).split(","):
        expert, _, weight = part.partition("=")
        if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", weight, re.IGNORECASE):
            raise UserError(f"{name[:80]!r} is not a mixture; write {PREFIX}EXPERT=WEIGHT,EXPERT=WEIGHT")
        library.path(expert)
        if expert in dict(weights):
            raise UserError(f"{name!r} names the expert {expert!r} twice")
        weights.append((expert, float(weight)))
    return Mixture.of(dict(weights))


class Adapter(NamedTuple):
    """A LoRA on disk: a PEFT adapter folder."""

    name: str
    number: int
    """Counts from 1; every LoRA has a different number, even the same one made again."""
    path: Path


class LoraCache:
    """The LoRAs of mixtures, in a temporary folder that is removed when the process ends. Thread-safe.

    Mixtures may name a library's experts and LoRAs, and others that are added, which may adapt only what those do.

    Args:
        base: the base that the library's experts adapt; it is not kept.
        room: the largest rank that whoever serves the LoRAs has room for; None if that is not known.
        keep: how many LoRAs stay on disk; those held least recently make room for others, unless they are still held.

    Raises:
        UserError: if the library was made for another base, or an expert is damaged or adapts a stack of matrices.
    """

    def __init__(
        self, library: ExpertLibrary, base: PreTrainedModel, *, room: int | None = None, keep: int = 32
    ) -> None:
        library.check_base(base)
        self.library = library
        self.room = room
        self.keep = keep
        self._experts: dict[str, Expert] = {}
        self._loras: dict[str, Lora] = {}
        layers: dict[str, nn.Module | Tensor] = {}
        for name in library.names:
            adapter = library.adapter(name)
            if isinstance(adapter, Lora):
                check_lora(f"the LoRA in {library.path(name)}", adapter, base)
                self._loras[name] = adapter
            else:
                _refuse_stacks(name, adapter)
                layers |= adapter.layers_in(base)
                self._experts[name] = adapter
        self._matrices = list(dict.fromkeys([*layers, *(m for lora in self._loras.values() for m in lora.a)]))
        self._conv1d = any(isinstance(base.get_submodule(matrix), Conv1D) for matrix in self._matrices)

        def shared(matrix: str) -> tuple[Tensor, Tensor]:
            """Vᵀ [r, n] and U diag(s) [m, r]."""
            r = max(len(expert.z.get(matrix, ())) for expert in self._experts.values())
            u, s, vt = (factor.float().cpu() for factor in decompose(dense_weight(layers[matrix]), r))
            return vt, u * s

        self._factors = dict(zip(layers, each_matrix(shared, list(layers), base.device), strict=True))
        self._folder = TemporaryDirectory(prefix="selfadapt-loras-")
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._lock = Lock()

    @property
    def matrices(self) -> list[str]:
        """The names of all matrices that an expert or a LoRA of the library adapts."""
        return self._matrices

    @property
    def experts(self) -> Collection[str]:
        """The names of the experts and LoRAs that mixtures may name."""
        return self._experts.keys() | self._loras.keys()

    def add(self, name: str, adapter: Expert | Lora) -> None:
        """Adds an expert or a LoRA, which mixtures may name from now on.

        Raises:
            UserError: if the name is taken, or the adapter adapts what the library's do not.
        """
        if isinstance(adapter, Lora):
            self._refuse_without_room(name, adapter)
        else:
            _refuse_stacks(name, adapter)
            self._refuse_other_values(name, adapter)
        with self._lock:
            if name in self.experts:
                raise UserError(f"there is an expert {name!r} here already; remove it first, or choose another name")
            if isinstance(adapter, Lora):
                self._loras[name] = adapter
            else:
                self._experts[name] = adapter

    def _refuse_other_values(self, name: str, expert: Expert) -> None:
        for matrix, z in expert.z.items():
            rank = len(self._factors[matrix][0]) if matrix in self._factors else 0
            if len(z) > rank:
                raise UserError(
                    f"the expert {name!r} adapts {len(z)} singular values of {matrix}, but there is room for {rank} "
                    f"here, the most in the library {self.library.folder}; add it to that library and start again"
                )

    def _refuse_without_room(self, name: str, lora: Lora) -> None:
        for matrix, rank in lora.ranks.items():
            if matrix not in self._matrices:
                raise UserError(
                    f"the LoRA {name!r} adapts {matrix}, which nothing in the library {self.library.folder} does, so "
                    "there is no room for it here; add it to that library and start again"
                )
            if self.room is not None and rank > self.room:
                raise UserError(
                    f"the LoRA {name!r} has rank {rank}, but there is room only for {self.room} here: start vLLM with "
                    f"a max_lora_rank of {rank} or more"
                )

    def remove(self, name: str) -> None:
        """Lets an expert or a LoRA go. LoRAs of mixtures that are held stay.

        Raises:
            UserError: if there is none of that name.
        """
        with self._lock:
            if self._experts.pop(name, None) is None and self._loras.pop(name, None) is None:
                raise unknown("expert", name, self.experts)

    @contextmanager
    def hold(self, mixture: Mixture) -> Iterator[list[Adapter | None]]:
        """The LoRA of each row, None for the base; they stay on disk for as long as the block lasts.

        Raises:
            UserError: if the mixture names an expert that is not here.
        """
        rows = [mixture.rows([row]) for row in range(len(mixture))]
        names = {name for name in map(mixture_name, rows) if name}
        with self._lock:
            self._held.update(names)
        try:
            yield [self._adapter(row) for row in rows]
        finally:
            with self._lock:
                self._held -= Counter(names)
                self._make_room()

    def holds(self, mixture: Mixture) -> bool:
        """Whether someone holds the LoRA of a mixture for one prompt."""
        return self._held[mixture_name(mixture)] > 0

    def _adapter(self, mixture: Mixture) -> Adapter | None:
        name = mixture_name(mixture)
        if not name:
            return None
        with self._lock:
            if name not in self._adapters:
                # Made again, it has the same path, so whoever remembers the path finds it.
                path = Path(self._folder.name, hashlib.sha256(name.encode()).hexdigest()[:16])
                self._lora(mixture).write(path)
                self._adapters[name] = Adapter(name, next(self._numbers), path)
            self._adapters.move_to_end(name)
            self._make_room()
            return self._adapters[name]

    def _lora(self, mixture: Mixture) -> Lora:
        for name in mixture.names:
            if name not in self.experts:
                raise unknown("expert", name, self.experts)
        own = [name for name in mixture.parts if name in self._experts]  # others would add ranks of zeros
        z = mixture.z(lambda name: self._experts[name].z if name in own else {})
        experts = {
            matrix: LoraFactors(vt[: len(of_matrix)], us[:, : len(of_matrix)] * (of_matrix - 1))
            for matrix, of_matrix in z.items()
            for vt, us in [self._factors[matrix]]
        }
        a, b = joined([experts, *mixed_loras(mixture, self._loras)])
        if not all(factor.isfinite().all() for factor in b.values()):
            raise UserError(
                f"the weights of {mixture_name(mixture)} are too large: the numbers are no longer finite; give smaller "
                "weights"
            )
        rank = max(map(len, a.values()))
        if self.room is not None and rank > self.room:
            raise UserError(
                f"{mixture_name(mixture)} is a LoRA of rank {rank}, but there is room only for {self.room}: start vLLM "
                f"with a max_lora_rank of {rank} or more"
            )
        description = f"The mixture {mixture}."
        return Lora(a, b, base=self.library.base, description=description, conv1d=self._conv1d)

    def _make_room(self) -> None:
        unheld = [name for name in self._adapters if not self._held[name]]
        for name in unheld[: max(0, len(self._adapters) - self.keep)]:
            shutil.rmtree(self._adapters.pop(name).path)


def _refuse_stacks(name: str, expert: Expert) -> None:
    for matrix, z in expert.z.items():
        if z.ndim == 2:
            raise UserError(
                f"the expert {name!r} adapts {matrix}, a stack of mixture-of-experts matrices, which only the native "
                "engine can serve"
            )
