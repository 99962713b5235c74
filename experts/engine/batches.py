"""Which prompts share a batch, and how a batch is padded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.pytorch_utils import Conv1D

from experts.engine.padding import reading_of
from experts.mixture import Mixture
from experts.outside.errors import UserError, short
from experts.outside.pictures import text_tokenizer
from experts.svf import SVFLinear, SVFModel
from experts.svf.quantised import shape_of

# While a step decodes fewer rows than this, reading the weights takes longer than computing with them.
ROWS_PER_READ = {"cpu": 8, "cuda": 256}


def plan_batches(
    model: nn.Module, lengths: Sequence[int], new_tokens: int, mixture: Mixture | None, batch_size: int
) -> list[list[int]]:
    """The queues of `plan_queues`, cut into batches."""
    queues = plan_queues(model, lengths, new_tokens, mixture, batch_size)
    return [queue[start : start + batch_size] for queue in queues for start in range(0, len(queue), batch_size)]


def plan_queues(
    model: nn.Module, lengths: Sequence[int], new_tokens: int, mixture: Mixture | None, batch_size: int
) -> list[list[int]]:
    """Deals prompts of `lengths` tokens out to queues of prompts that may share a batch: indices, sorted by length.

    Rows of different mixtures can run in one batch, in factor space, where a token costs more; or in smaller batches of
    one mixture each, on weights that have to be merged first. The cheaper plan is taken. A base that cannot run rows of
    different mixtures gets the second, and one that padding would change gets queues of equal lengths.

    Args:
        new_tokens: in each answer.
        mixture: one row per prompt; None leaves the model as it is.

    Raises:
        UserError: if the mixture does not have one row per prompt.
    """
    queues = _queues(model, lengths, new_tokens, mixture, batch_size)
    if len(set(lengths)) > 1 and not all(reading_of(cast(Any, model))):
        queues = [[*rows] for queue in queues for _, rows in groupby(queue, key=lambda row: lengths[row])]
    return queues


def check_mixture(mixture: Mixture | None, prompts: int) -> None:
    """Raises UserError for what is not a mixture, or not one row per prompt; None is allowed."""
    if mixture is None:
        return
    if not isinstance(mixture, Mixture):
        raise UserError(f"mixture must be a Mixture, such as Mixture.of({{'name': 1.0}}), not {short(mixture)}")
    if len(mixture) != prompts:
        raise UserError(f"{prompts} prompts need a mixture of as many rows, not {len(mixture)}")


def _queues(
    model: nn.Module, lengths: Sequence[int], new_tokens: int, mixture: Mixture | None, batch_size: int
) -> list[list[int]]:
    check_mixture(mixture, len(lengths))

    def by_length(rows: Iterable[int]) -> list[int]:
        return sorted(rows, key=lambda row: lengths[row])

    together = [by_length(range(len(lengths)))]
    group_of = mixture.groups() if mixture is not None else [0]
    if len(set(group_of)) == 1 or not isinstance(model, PeftModel):
        return together
    assert mixture is not None
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        groups.setdefault(group, []).append(row)
    apart = [by_length(rows) for rows in groups.values()]

    rows_per_read = ROWS_PER_READ.get(model.device.type, 256)

    def cost(queues: list[list[int]]) -> float:
        """The cost, in tokens that pass through the base."""
        plan = [queue[start : start + batch_size] for queue in queues for start in range(0, len(queue), batch_size)]
        # A prompt is padded to the longest of its batch, which is the last. Decoding a row costs one token, but a step
        # of few rows takes as long as reading the weights. This makes many small batches expensive.
        return sum(len(rows) * lengths[rows[-1]] + new_tokens * max(len(rows), rows_per_read) for rows in plan)

    # The base alone needs no merging. Factors can only replace W if no row is the base, which must come out exact.
    merges = sum(not mixture.rows(rows[:1]).is_base for rows in groups.values())
    no_base = all(mixture.rows([row]).weights.any() for row in range(len(mixture)))
    in_factors, merging = _relative_costs(model, mixture.parts, no_base)
    cheaper_apart = cost(apart) + merges * merging < in_factors * cost(together)
    return apart if cheaper_apart or not cast(SVFModel, model.base_model).runs_rows(mixture.parts) else together


def _relative_costs(model: PeftModel, named: Sequence[str], no_base: bool) -> tuple[float, float]:
    """The cost of a token in factor space and of merging one mixture, both in tokens through the base.

    A matrix [m, n] takes m·n multiplications per token; its factors of rank r take r (m + n), beside the matrix or in
    its place. Merging, U diag(…) Vᵀ, takes r·m·n. A LoRA of rank k takes another k (m + n) and k·m·n.

    Args:
        named: the experts and LoRAs that have a part in some row.
        no_base: whether no row is the base, so that full factors may replace their matrix.
    """
    base = sum(
        math.prod(shape_of(module))
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and isinstance(module.weight, Tensor)
    )
    in_factors, merging = float(base), 0.0
    for layer in model.modules():
        if isinstance(layer, SVFLinear):
            m, n = layer.out_features, layer.in_features
            r = 0 if layer.svf_s is None else len(layer.svf_s)
            k = sum(len(layer.svf_loras[name].a) for name in named if name in layer.svf_loras)
            in_factors += (r + k) * (m + n) - (m * n if no_base and layer.whole_in_factors else 0)
            merging += (r + k) * m * n
    return in_factors / base, merging / base


def pad_batch(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, ids: list[list[int]]
) -> Any:
    """`input_ids` and `attention_mask` [B, T] on the model's device, padded on the left."""
    padded = text_tokenizer(tokenizer).pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    return padded.to(model.device)
