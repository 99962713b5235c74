"""What a mixture for one prompt amounts to: an expert's difference from the base, and LoRAs' differences beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.attaching import check_lora
from experts.exchange.lora import Lora, joined
from experts.expert import Expert
from experts.outside.errors import UserError
from experts.svf.decomposition import decompose, each_matrix
from experts.svf.mixing import LoraFactors
from experts.svf.names import plain_modules
from experts.svf.quantised import dense_weight, is_quantised


@dataclass(frozen=True)
class Difference:
    """W' − W = U diag(s(z−1)) Vᵀ + Σ_k B_k A_k of each matrix.

    Args:
        expert: z, and the base that everything is for; it has no matrices if there are only LoRAs.
        loras: their factors by the matrices' names; B carries weight and scaling.
    """

    expert: Expert
    loras: Sequence[Mapping[str, LoraFactors]] = ()

    def exact(self, base: PreTrainedModel) -> Lora:
        """The whole difference as one LoRA, whose rank in a matrix is the sum of the parts' ranks.

        Raises:
            UserError: if it does not fit the base, or its expert adapts stacks of matrices, which LoRAs cannot be
                combined with.
        """
        if stacks := [matrix for matrix, z in self.expert.z.items() if z.ndim == 2]:
            raise UserError(
                f"a mixture of LoRAs and of experts that adapt a stack of matrices ({stacks[0]}) cannot be "
                "exported; mix either kind alone"
            )
        layers = self.expert.layers_in(base)

        def factors(matrix: str) -> LoraFactors:
            u, s, vt = decompose(dense_weight(layers[matrix]), len(self.expert.z[matrix]))
            return LoraFactors(vt.float().cpu(), (u.to(s) * (s * (self.expert.z[matrix] - 1).to(s))).float().cpu())

        own = dict(zip(layers, each_matrix(factors, list(layers), base.device), strict=True))
        a, b = joined([own, *self.loras])
        conv1d = any(isinstance(plain_modules(base).get(matrix), Conv1D) for matrix in a)
        lora = Lora(a, b, base=self.expert.base, description=self.expert.description, conv1d=conv1d)
        check_lora("the mixture", lora, base)
        return lora

    def small(self, base: PreTrainedModel) -> Lora:
        """The exact LoRA.

        Raises:
            UserError: as `exact` does, or if it would be as large as the matrices.
        """
        exact = self.exact(base)
        ranks = exact.ranks.items()
        if sum(k * (exact.a[m].shape[1] + len(exact.b[m])) for m, k in ranks) >= sum(
            exact.a[m].shape[1] * len(exact.b[m]) for m, _ in ranks
        ):
            raise UserError(
                "the exact LoRA of this mixture would be as large as the matrices; choose a rank, or export it merged"
            )
        return exact

    def nearest(self, base: PreTrainedModel, rank: int) -> tuple[Lora, float]:
        """The nearest LoRA of at most `rank` in each matrix, and the share of Σ‖W' − W‖² that it keeps.

        Raises:
            UserError: as `exact` does.
        """
        exact = self.exact(base)
        a: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        kept, total = 0.0, 0.0
        for matrix in exact.a:
            # B A = Q_b (R_b R_aᵀ) Q_aᵀ: only the middle has to be decomposed.
            q_b, r_b = torch.linalg.qr(exact.b[matrix].double())
            q_a, r_a = torch.linalg.qr(exact.a[matrix].double().T)
            u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
            a[matrix] = (vt[:rank] @ q_a.T).float()
            b[matrix] = (q_b @ (u[:, :rank] * s[:rank])).float()
            kept += s[:rank].square().sum().item()
            total += s.square().sum().item()
        lora = Lora(a, b, base=exact.base, description=exact.description, conv1d=exact.conv1d)
        return lora, kept / total if total else 1.0

    def merge_into(self, base: PreTrainedModel) -> None:
        """Adds the difference to the base's own weights, each rounded once.

        Raises:
            UserError: as `exact` does, or if a matrix is quantised or shares its weight with the input embeddings.
        """
        exact = self.exact(base)
        modules: dict[str, Any] = {**plain_modules(base)}
        embeddings = base.get_input_embeddings()
        for matrix in exact.a:
            if is_quantised(modules[matrix]):
                raise UserError(
                    f"{matrix} is quantised, and an expert cannot be merged into so few bits; export a LoRA"
                )
            if modules[matrix].weight is embeddings.weight:
                raise UserError(
                    f"{matrix} shares its weight with the input embeddings, which would change with it; export a LoRA"
                )
        for matrix, a in exact.a.items():
            module = modules[matrix]
            difference = exact.b[matrix].to(module.weight.device) @ a.to(module.weight.device)  # [m, n]
            weight = module.weight.data
            module.weight.data = (
                (difference.T if isinstance(module, Conv1D) else difference).add_(weight).to(weight.dtype)
            )
