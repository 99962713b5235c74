"""Exports an expert, a LoRA or a fixed mixture for programs that know nothing of SVF: as a merged checkpoint or a LoRA.

The difference that an expert makes, U diag(s(z−1)) Vᵀ, is a sum of r rank-one parts that are orthogonal to each other.
A LoRA with A = Vᵀ and B = U diag(s(z−1)) is exactly this difference. A LoRA of a smaller rank does best with the parts
of largest |s(z−1)| (Eckart-Young): it keeps their share of the energy Σ s²(z−1)² = ‖W' − W‖². LoRAs in a mixture add to
the difference, and their ranks to the exact LoRA's (`experts.exchange.difference`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from experts.exchange.difference import Difference
from experts.exchange.hub import TWIN
from experts.exchange.lora import Lora
from experts.exchange.measure import NEUTRAL_TEXTS, LogLikelihood, Texts, measure_lora
from experts.expert import Expert
from experts.outside.cards import model_card
from experts.outside.errors import UserError
from experts.outside.files import new_folder
from experts.outside.reading import read_json
from experts.svf.decomposition import decompose, each_matrix
from experts.svf.fingerprint import refuse_other_base
from experts.svf.names import plain_modules
from experts.svf.quantised import dense_weight, shape_of
from experts.svf.stacks import fused_parameters


def best_lora(base: PreTrainedModel, expert: Expert | Difference, rank: int | None = None) -> tuple[Lora, float]:
    """The LoRA nearest to an expert or a mixture, of at most `rank` in each matrix; None is exact.

    Returns:
        The LoRA, and the share of Σ‖W' − W‖² over all matrices that it keeps; 1.0 is exact.

    Raises:
        UserError: if the expert is the base, does not fit it, or its exact LoRA would be as large as the matrices; or
            if PEFT would misread the LoRA.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank of a LoRA is at least 1, not {rank}")
    if isinstance(expert, Difference):
        if expert.loras:
            return (expert.small(base), 1.0) if rank is None else expert.nearest(base, rank)
        expert = expert.expert
    if not expert.z:
        raise UserError("the mixture is the base itself: there is nothing to export as a LoRA")
    layers = expert.layers_in(base)
    modules, fused = plain_modules(base), fused_parameters(base)
    transposed = {m for m in fused if getattr(modules[m.rpartition(".")[0]], "is_transposed", False)}
    if rank is None:
        exact = sum(z.numel() * sum(shape_of(layers[matrix])) for matrix, z in expert.z.items())
        if exact >= sum(z.shape[:-1].numel() * math.prod(shape_of(layers[m])) for m, z in expert.z.items()):
            raise UserError(
                "this expert adapts so many singular values that its exact LoRA would be as large as the matrices; "
                "choose a rank, or export it merged"
            )

    def best(matrix: str) -> tuple[Tensor, Tensor, float, float]:
        """A [..., k, n], B [..., m, k], the energy they keep, and the total energy."""
        z = expert.z[matrix]
        r = z.shape[-1]
        u, s, vt = decompose(dense_weight(layers[matrix]), r)
        scale = s * (z - 1).to(s)  # [..., r]
        largest = scale.abs().topk(min(rank or r, r)).indices.sort().values  # [..., k]
        kept = scale.gather(-1, largest)
        a = vt.take_along_dim(largest[..., None], -2).float().cpu()
        b = (u.take_along_dim(largest[..., None, :], -1).to(s) * kept[..., None, :]).float().cpu()
        if matrix in transposed:  # PEFT's A is on the side of a layer's inputs
            a, b = b.mT, a.mT
        return a, b, kept.double().square().sum().item(), scale.double().square().sum().item()

    # Stacks go in the base's order, because PEFT wraps their modules in it.
    matrices = [*(m for m in expert.z if m not in fused), *(m for m in fused if m in expert.z)]
    a, b, kept, energies = zip(*each_matrix(best, matrices, base.device), strict=True)
    lora = Lora(
        dict(zip(matrices, a, strict=True)),
        dict(zip(matrices, b, strict=True)),
        base=expert.base,
        description=expert.description,
        conv1d=all(isinstance(modules.get(matrix), Conv1D) for matrix in expert.z),
    )
    _refuse_misread(lora, base)
    energy = sum(energies)
    return lora, sum(kept) / energy if energy else 1.0


def _refuse_misread(lora: Lora, base: PreTrainedModel) -> None:
    """Raises UserError for a LoRA that PEFT would apply to other matrices.

    For some mixtures of experts PEFT reads `gate_proj` and the like, wherever they are, as the names that the matrices
    of the mixture had before transformers 5 kept them in one parameter.
    """
    config = lora.config
    convert_peft_config_for_transformers(config, base, None)
    read_as = {*(config.target_modules or ()), *(config.target_parameters or ())}
    if misread := sorted(lora.a.keys() - read_as):
        raise UserError(
            f"PEFT would mistake the LoRA of {misread[0]} for one of the mixture-of-experts matrices; export it "
            "merged, or leave that layer out of target_modules"
        )


@dataclass(frozen=True)
class Exported:
    """What an export has written, and what from."""

    folder: Path
    base: str | None
    """The base's name."""
    fingerprint: str | None
    """The fingerprint of the base that the expert was trained on."""
    base_fingerprint: str | None
    """The fingerprint of the base that it was exported with: the same, or a rounding's."""
    facts: str
    """What the card says about the result, in one line."""


def export_merged(
    expert: Expert | Difference,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    finish: Callable[[Path], None] = lambda unfinished: None,
) -> Exported:
    """Writes the base, with an expert or a mixture merged into it, as a plain checkpoint with a card.

    The base given is used up.

    A bfloat16 weight keeps changes of z below about 0.01 badly; merge into float32 if that matters.

    Args:
        finish: called with the checkpoint's folder before that is moved into place.

    Raises:
        UserError: if the folder exists, or the expert does not fit the base or belongs to another.
    """
    folder = Path(folder)
    whole = expert if isinstance(expert, Difference) else Difference(expert)
    expert = whole.expert
    found = _fingerprint(expert, base)
    facts = f"Merged into the base's weights, {str(base.dtype).removeprefix('torch.')}."
    with new_folder(folder) as unfinished:
        model: Any = base
        if whole.loras:
            whole.merge_into(base)
        elif expert.z:
            model = cast(Any, expert.attach(base)).merge_and_unload()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        finish(unfinished)
        card = model_card(_card(folder.name, expert, found, facts), expert.base, ["svf"], library="transformers")
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    return Exported(folder, expert.base, expert.fingerprint, found, facts)


@dataclass(frozen=True)
class ExportedLora(Exported):
    rank: int
    """The largest rank of its matrices."""
    energy_kept: float
    """The share of Σ‖W' − W‖² over all matrices; 1.0 is exact."""
    measured: LogLikelihood


def export_lora(
    expert: Expert | Difference,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    rank: int | None = None,
    texts: Texts = NEUTRAL_TEXTS,
) -> ExportedLora:
    """Writes the LoRA nearest to an expert or a mixture as a PEFT folder, with a card that says what it loses.

    Args:
        rank: the LoRA's rank; None for one that holds the expert exactly.
        texts: the texts that the loss is measured on.

    Raises:
        UserError: if the folder exists; as `best_lora` does; if the expert belongs to another base; or if there is no
            text.
    """
    folder = Path(folder)
    whole = expert if isinstance(expert, Difference) else Difference(expert)
    expert = whole.expert
    found = _fingerprint(expert, base)
    lora, energy = best_lora(base, whole, rank)
    measured = measure_lora(base, tokenizer, whole.exact(base) if whole.loras else expert, lora, texts.lines)
    largest = max(lora.ranks.values())
    facts = (
        f"A LoRA of rank {largest} that keeps {energy:.2%} of the energy of the expert's difference. "
        f"Log-likelihood of {texts.name}, {measured.tokens} tokens, in nats a token: base {measured.base:.4f}, "
        f"expert {measured.expert:.4f}, LoRA {measured.lora:.4f}."
    )
    lora.write(folder, _card(folder.name, expert, found, facts))
    return ExportedLora(folder, expert.base, expert.fingerprint, found, facts, largest, energy, measured)


def lora_twin(base: PreTrainedModel) -> Callable[[Path], None]:
    """A function that puts the exact LoRA beside an expert of this base, in the folder `lora` inside the expert's.

    Given another adapter's folder, the function does nothing. It raises UserError if the expert belongs to another
    base, or has too many singular values for a small LoRA.
    """

    def put(folder: Path) -> None:
        if read_json(folder / "adapter_config.json").get("peft_type") != "SVF":
            return
        expert = Expert.read(folder)
        found = _fingerprint(expert, base)
        try:
            lora, _ = best_lora(base, expert)
        except UserError as error:
            raise UserError(f"{folder.name} has no LoRA beside it: {error}") from error
        shutil.rmtree(folder / TWIN, ignore_errors=True)
        facts = f"A LoRA of rank {max(lora.ranks.values())} that is exactly the SVF expert above it."
        lora.write(folder / TWIN, _card(folder.name, expert, found, facts))

    return put


def _fingerprint(expert: Expert, base: PreTrainedModel) -> str | None:
    """The fingerprint of the base, which is the expert's or a rounding of it; None if the expert has none."""
    if expert.fingerprint is None:
        return None
    return refuse_other_base("the expert", expert.fingerprint, expert.sketch, base)


def _card(name: str, expert: Expert, found: str | None, facts: str) -> str:
    about = f"{expert.description} For the base `{expert.base}` (fingerprint `{found}`)."
    if found != expert.fingerprint:
        about += f" Trained on the base that this one is a rounding of (fingerprint `{expert.fingerprint}`)."
    return f"# {name}\n\n{about}\n\n{facts}\n"
