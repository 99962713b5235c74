"""A LoRA as its factors: made from an expert, written by a network, or read from a PEFT folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from experts.mixture import Mixture
from experts.outside.adapters import PREFIX, write_adapter, write_description
from experts.outside.base_names import public_name
from experts.outside.files import new_folder
from experts.svf.mixing import LoraFactors

A, B = ".lora_A.weight", ".lora_B.weight"  # these follow a matrix's name in the keys of an adapter file


def mixed_loras(mixture: Mixture, loras: Mapping[str, Lora]) -> list[dict[str, LoraFactors]]:
    """What each LoRA in a mixture for one prompt adds to its matrices, α_k B_k A_k, for those whose α_k is not 0."""
    parts = []
    for k, name in enumerate(mixture.names):
        if name in loras:
            alphas = {m: mixture.per_matrix.get(m, mixture.weights)[0, k].item() for m in loras[name].a}
            own = {m: LoraFactors(a, alphas[m] * b) for m, (a, b) in loras[name].factors.items() if alphas[m]}
            parts += [own] if own else []
    return parts


def joined(parts: Sequence[Mapping[str, LoraFactors]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A and B of each matrix, whose product is the sum of the parts' products: the ranks are concatenated."""
    a: dict[str, list[Tensor]] = {}
    b: dict[str, list[Tensor]] = {}
    for part in parts:
        for matrix, factors in part.items():
            a.setdefault(matrix, []).append(factors.a)
            b.setdefault(matrix, []).append(factors.b)
    return {m: torch.cat(own) for m, own in a.items()}, {m: torch.cat(own, 1) for m, own in b.items()}


@dataclass(frozen=True)
class Lora:
    """W' = W + scaling · B A for each adapted matrix W [m, n].

    Args:
        a: matrix name → A [k, n], float32; [E, k, n] for a stack of E matrices in one parameter of that name.
        b: matrix name → B [m, k], float32; or [E, m, k].
        alpha: the scaling is alpha / k, or alpha / √k with `rslora`; None means 1, and B carries the scaling.
        base: the name of the base.
        description: what it is for, or how it was made.
        conv1d: whether the base keeps W transposed, as GPT-2 does.
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    alpha: float | None = None
    rslora: bool = False
    base: str | None = None
    description: str = ""
    conv1d: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        """Matrix name → k."""
        return {matrix: a.shape[-2] for matrix, a in self.a.items()}

    @property
    def factors(self) -> dict[str, LoraFactors]:
        """Matrix name → A and B; B carries the scaling."""
        return {matrix: LoraFactors(a, self._scaling(a.shape[-2]) * self.b[matrix]) for matrix, a in self.a.items()}

    def _scaling(self, k: int) -> float:
        return 1.0 if self.alpha is None else self.alpha / (k**0.5 if self.rslora else k)

    @property
    def config(self) -> LoraConfig:
        """The PEFT configuration to write to its folder."""
        largest = max(self.ranks.values())
        differing = {matrix: rank for matrix, rank in self.ranks.items() if rank != largest}
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=public_name(self.base),
            r=largest,
            lora_alpha=largest if self.alpha is None else cast(int, self.alpha),  # PEFT takes fractions, too
            use_rslora=self.rslora,
            rank_pattern=differing,
            alpha_pattern=dict(differing) if self.alpha is None else {},
            target_modules=sorted(matrix for matrix, a in self.a.items() if a.ndim == 2),
            target_parameters=sorted(matrix for matrix, a in self.a.items() if a.ndim == 3) or None,
            fan_in_fan_out=self.conv1d,
            inference_mode=True,
        )

    def write(self, folder: str | Path, card: str | None = None) -> None:
        """Writes a PEFT adapter folder, all or nothing; it loads without this package.

        Args:
            card: the text of README.md, by default the description and the base.

        Raises:
            UserError: if the folder exists.
        """
        folder = Path(folder)
        plain = f"# {folder.name}\n\n{self.description}\n\nA LoRA for the base `{self.base}`.\n"
        with new_folder(folder) as temporary:
            write_adapter(temporary, self.config, self._state_dict(), plain if card is None else card)
            if self.description:
                write_description(temporary, self.description)

    def attach(self, base: PreTrainedModel) -> PeftModel:
        """`base` with this LoRA active and frozen; `unload` of the returned model takes it off again."""
        config = self.config
        config.base_model_name_or_path = None  # PEFT puts the base's own name there, with a warning if it differs
        model = cast(PeftModel, get_peft_model(base, config))
        set_peft_model_state_dict(model, self._state_dict())
        return model.eval()

    def _state_dict(self) -> dict[str, Tensor]:
        places = {matrix: PREFIX + self._layer_of(matrix) for matrix in self.a}
        tensors = {f"{places[matrix]}{A}": a.reshape(-1, a.shape[-1]) for matrix, a in self.a.items()}
        # In PEFT the index of the E matrices runs fastest in the columns of B, and slowest in the rows of A.
        columns = {matrix: b if b.ndim == 2 else b.permute(1, 2, 0).flatten(1) for matrix, b in self.b.items()}
        return tensors | {f"{places[matrix]}{B}": b for matrix, b in columns.items()}

    def _layer_of(self, matrix: str) -> str:
        """The name of PEFT's layer for a matrix: a module is wrapped once for each of its stacks, the last outside."""
        if self.a[matrix].ndim == 2:
            return matrix
        module = matrix.rpartition(".")[0]
        beside = [other for other, a in self.a.items() if a.ndim == 3 and other.rpartition(".")[0] == module]
        return module + ".base_layer" * (len(beside) - 1 - beside.index(matrix))
