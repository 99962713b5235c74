"""Which matrices of a base get an adapter, and their shapes, read from its config and never from its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError


@dataclass(frozen=True)
class Matrix:
    """A weight W [m, n] of a base: m = `out_features`, n = `in_features`."""

    name: str
    out_features: int
    in_features: int

    @property
    def layer(self) -> int:
        """The first number in the name; 0 if there is none."""
        numbered = re.search(r"\.(\d+)\.", self.name)
        return int(numbered[1]) if numbered else 0

    @property
    def module(self) -> str:
        """Its name within its layer, such as `self_attn.q_proj`."""
        return re.split(r"\.\d+\.", self.name, maxsplit=1)[-1]


def read_matrices(base: PreTrainedConfig | nn.Module, target_modules: str | Sequence[str]) -> list[Matrix]:
    """The linear layers of a base that `target_modules` refers to, as in PEFT, in the base's order.

    A config becomes a model on the meta device, which has shapes but no values.

    Raises:
        UserError: if it refers to none.
    """
    model = base
    if isinstance(base, PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(base)
    assert isinstance(model, nn.Module)
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    meant = _maybe_include_all_linear_layers(LoraConfig(target_modules=targets), model)
    matrices = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and check_target_module_exists(meant, name):
            shape = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
            matrices.append(Matrix(name, *shape))
    if not matrices:
        raise UserError(f"target_modules {targets!r} names no linear layer of this base")
    return matrices


def check_same_matrices(wanted: Sequence[Matrix], found: Sequence[Matrix]) -> None:
    """Raises UserError, naming the first difference, if a base's matrices are not those that a network was made for."""
    there = {matrix.name: matrix for matrix in found}
    for matrix in wanted:
        shape = f"{matrix.name} [{matrix.out_features}, {matrix.in_features}]"
        if matrix.name not in there:
            raise UserError(f"the network writes adapters for another base: it expects {shape}, but this one has none")
        if there[matrix.name] != matrix:
            other = there[matrix.name]
            raise UserError(
                f"the network writes adapters for another base: it expects {shape}, but this one has "
                f"[{other.out_features}, {other.in_features}]"
            )
    if len(found) != len(wanted):
        raise UserError(
            f"the network writes adapters for another base: it expects {len(wanted)} matrices, but this one has "
            f"{len(found)}"
        )
