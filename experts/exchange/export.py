"""An expert or a fixed mixture for programs that know nothing of SVF: a merged checkpoint, or a LoRA.

The difference that an expert makes, U diag(s(z−1)) Vᵀ, is a sum of r rank-one parts that are orthogonal to each other.
As a LoRA with A = Vᵀ and B = U diag(s(z−1)) it is exact. A LoRA of a smaller rank does best with the parts of largest
|s(z−1)| (Eckart-Young): it keeps their share of the energy Σ s²(z−1)² = ‖W' − W‖².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from experts.engine.native import evaluating
from experts.expert import PREFIX, Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.outside.pictures import text_tokenizer
from experts.svf.decomposition import decompose, each_matrix

# What a lossy export is measured on where the user has nothing better. Of no domain in particular.
NEUTRAL_TEXTS = (
    "The harbour lies on the north side of the island, where the water is deep enough for ferries.",
    "She put the letter back into the drawer, turned off the lamp and listened to the rain.",
    "Bread needs flour, water, salt and time. The dough is ready when a dent in it comes back slowly.",
    "A train leaves the city every half hour; on Sundays the first one goes at seven.",
    "To change the battery, open the cover on the back and lift the old one out with a flat tool.",
    "The committee met twice in spring and decided to repair the old bridge before winter.",
    "Owls hunt at night. Their feathers are soft at the edges, so that they fly almost without a sound.",
    "If the sum of two numbers is even, then both are even or both are odd.",
)


def fixed_expert(library: ExpertLibrary, mixture: Mixture) -> Expert:
    """The expert that a mixture for one prompt amounts to: z = 1 + Σ_k α_k (z_k − 1).

    Raises:
        UserError: if the mixture names an expert that the library does not have.
    """
    weighted = []
    for k, name in enumerate(mixture.names):
        z = {
            matrix: 1 + mixture.per_matrix.get(matrix, mixture.weights)[0, k] * (z - 1)
            for matrix, z in library.z(name).items()
        }
        weighted.append(Expert(z, library.base, library.fingerprint))
    total = sum(weighted, Expert({}, library.base, library.fingerprint))
    return Expert(total.z, library.base, library.fingerprint, f"The mixture {mixture}.", sketch=library.sketch)


@dataclass(frozen=True)
class Lora:
    """B A [m, n] of each matrix, in float32."""

    a: dict[str, Tensor]  # matrix → [k, n]
    b: dict[str, Tensor]  # matrix → [m, k]
    energy: float = 1.0
    """The share of Σ‖W' − W‖² over all matrices that is kept; 1.0 is exact."""

    @property
    def ranks(self) -> dict[str, int]:
        return {matrix: len(a) for matrix, a in self.a.items()}


def best_lora(base: PreTrainedModel, expert: Expert, rank: int | None = None) -> Lora:
    """The LoRA nearest to an expert, of at most `rank` in each matrix; None is exact.

    Raises:
        UserError: if the expert is the base, does not fit it, or its exact LoRA would be as large as the matrices.
    """
    if not expert.z:
        raise UserError("the mixture is the base itself: there is nothing to export as a LoRA")
    if rank is not None and rank < 1:
        raise UserError(f"the rank of a LoRA is at least 1, not {rank}")
    weights = expert.weights_in(base)
    if rank is None:
        exact = sum(len(z) * sum(weights[matrix].shape) for matrix, z in expert.z.items())
        if exact >= sum(weight.numel() for weight in weights.values()):
            raise UserError(
                "this expert adapts so many singular values that its exact LoRA would be as large as the matrices; "
                "choose a --rank, or export it merged"
            )

    def best(matrix: str) -> tuple[Tensor, Tensor, float, float]:
        """A [k, n], B [m, k], the energy they keep, and all there is."""
        z = expert.z[matrix]
        u, s, vt = decompose(weights[matrix], len(z))
        scale = s * (z - 1).to(s)  # [r]
        largest = scale.abs().topk(min(rank or len(z), len(z))).indices.sort().values  # [k]
        a = vt[largest].float().cpu().contiguous()
        b = (u[:, largest].to(s) * scale[largest]).float().cpu().contiguous()
        return a, b, scale[largest].double().square().sum().item(), scale.double().square().sum().item()

    a, b, kept, energies = zip(*each_matrix(best, list(expert.z), base.device), strict=True)
    energy = sum(energies)
    return Lora(
        dict(zip(expert.z, a, strict=True)), dict(zip(expert.z, b, strict=True)), sum(kept) / energy if energy else 1.0
    )


def write_lora(folder: Path, base: PreTrainedModel, lora: Lora, expert: Expert) -> None:
    """Writes a PEFT LoRA adapter into an existing folder."""
    conv1d = all(isinstance(base.get_submodule(matrix), Conv1D) for matrix in lora.a)
    save_lora(folder, lora, expert.base, conv1d=conv1d)


def save_lora(folder: Path, lora: Lora, base_name: str | None, *, conv1d: bool = False) -> None:
    """The same without the base.

    Args:
        conv1d: whether the adapted modules are transformers' Conv1D, which keep W transposed.
    """
    largest = max(lora.ranks.values())
    differing = {matrix: rank for matrix, rank in lora.ranks.items() if rank != largest}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=largest,
        lora_alpha=largest,  # B carries the scale
        rank_pattern=differing,
        alpha_pattern=dict(differing),
        target_modules=sorted(lora.a),
        fan_in_fan_out=conv1d,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {f"{PREFIX}{matrix}.lora_A.weight": a for matrix, a in lora.a.items()}
    tensors |= {f"{PREFIX}{matrix}.lora_B.weight": b for matrix, b in lora.b.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_merged(folder: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, expert: Expert) -> None:
    """Writes the base with the expert merged into it as a plain checkpoint. The base given is used up.

    A weight in bfloat16 keeps changes of z below about 0.01 badly; merge into float32 where that matters.

    Raises:
        UserError: if the expert does not fit the base.
    """
    model: Any = expert.attach(base).merge_and_unload() if expert.z else base
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class LogLikelihood:
    """Mean log-likelihood of a token, in nats."""

    base: float
    expert: float
    lora: float
    tokens: int


def measure_lora(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, expert: Expert, folder: Path, texts: Sequence[str]
) -> LogLikelihood:
    """The texts under the base, the expert, and the LoRA in `folder`.

    Raises:
        UserError: if there is no text.
    """
    in_base, tokens = log_likelihood(base, tokenizer, texts)
    attached = expert.attach(base)  # as if for training: a bfloat16 base is not merged, which would round
    in_expert, _ = log_likelihood(attached, tokenizer, texts)
    attached.unload()
    loaded = PeftModel.from_pretrained(base, str(folder))
    in_lora, _ = log_likelihood(loaded, tokenizer, texts)
    loaded.unload()
    return LogLikelihood(in_base, in_expert, in_lora, tokens)


@torch.inference_mode()
def log_likelihood(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[float, int]:
    """The mean log-likelihood of a token in nats, and the number of tokens.

    A text follows the tokenizer's begin (or end) token, and every token of it counts, also a begin token that the
    tokenizer adds. One that is longer than the context is read in windows, each as full as it can be. All of this is
    lm-eval's `loglikelihood_rolling`.
    """
    text_alone: Any = text_tokenizer(tokenizer)
    begin = [token for token in (text_alone.bos_token_id, text_alone.eos_token_id) if token is not None][:1]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    total, tokens = 0.0, 0
    with evaluating(model):
        for text in texts:
            begun = bool(begin) and text.startswith(text_alone.decode(begin))
            ids = [*begin, *text_alone.encode(text, **({"add_special_tokens": False} if begun else {}))]
            window = context or len(ids)
            for start in range(0, len(ids) - 1, window):
                end = min(start + window, len(ids) - 1)
                read = torch.tensor([ids[max(0, end - window) : end]], device=model.device)  # [1, T]
                targets = torch.tensor(ids[start + 1 : end + 1], device=model.device)
                logits = model(input_ids=read).logits[0, -len(targets) :].float()  # [T', V]
                total -= F.cross_entropy(logits, targets, reduction="sum").item()
            tokens += max(0, len(ids) - 1)
    if not tokens:
        raise UserError("there is no text to measure the export on")
    return total / tokens, tokens
