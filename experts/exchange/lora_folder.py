"""Reads LoRAs that PEFT saved, with any ranks and scalings, as what they add to a base."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experts.exchange.lora import A, B, Lora
from experts.expert import EMBEDDING, FLOATS
from experts.outside.adapters import PREFIX, read_description
from experts.outside.errors import UserError
from experts.outside.reading import read_json

# What a LoRA must not have, because it would be more than B A beside W, or something else: field → the value without.
PLAIN: dict[str, Any] = {
    "bias": "none",
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "modules_to_save", "trainable_token_indices")),
    **dict.fromkeys(("target_parameters", "layer_replication", "alora_invocation_tokens", "use_bdlora")),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "velora_config")),
}
# PEFT changes the base's own weights when it loads a LoRA that was initialised in one of these ways.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def peft_type(folder: Path) -> str | None:
    """The kind of PEFT adapter that a folder's configuration names, such as "SVF" or "LORA"; None if there is none.

    Raises:
        UserError: if the configuration is damaged.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    kind = document.get("peft_type")
    return kind if isinstance(kind, str) else None


def read_lora(folder: Path) -> Lora:
    """The LoRA in a PEFT adapter folder; if matrices have alphas of their own, B carries the scaling.

    Raises:
        UserError: if it is damaged, or is more than B A beside W.
    """
    kind = peft_type(folder)
    if kind != "LORA":
        raise UserError(f"{folder} is {f'a {kind} adapter, not a LoRA' if kind else 'not a PEFT adapter'}")
    document = read_json(folder / "adapter_config.json")
    for field, plain in PLAIN.items():
        if document.get(field) and document[field] != plain:
            raise UserError(f"{folder} is more than a LoRA: it has {field}={document[field]!r:.60}; load it with PEFT")
    began = document.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(CHANGES_BASE):
        raise UserError(
            f"{folder} began as {began!r:.60}, which changes the base's own weights: save it as a plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    a, b = _factors(folder)
    try:
        alphas = {matrix: float(_own(document, "alpha_pattern", matrix, "lora_alpha")) for matrix in a}
        ranks = {matrix: _own(document, "rank_pattern", matrix, "r") for matrix in a}
        if not all(map(math.isfinite, alphas.values())):
            raise ValueError("not finite")
    except (TypeError, ValueError, KeyError, AttributeError, re.error) as error:
        raise UserError(
            f"{folder / 'adapter_config.json'} is damaged: its rank is missing, or its alpha is not a number ({error})"
        ) from error
    if any(len(factor) != ranks[matrix] for matrix, factor in a.items()):
        raise UserError(f"{folder} is damaged: the ranks of its factors are not those in its configuration")
    rslora, base = bool(document.get("use_rslora")), document.get("base_model_name_or_path")
    plain = not rslora and all(alpha == len(a[matrix]) for matrix, alpha in alphas.items())
    alpha = None if plain or len({*alphas.values()}) > 1 else next(iter(alphas.values()))
    if alpha is None and not plain:
        scalings = {matrix: alphas[matrix] / (len(a[matrix]) ** 0.5 if rslora else len(a[matrix])) for matrix in a}
        b = {matrix: scalings[matrix] * factor for matrix, factor in b.items()}
    return Lora(
        a,
        b,
        alpha,
        rslora and alpha is not None,
        base=base if base and isinstance(base, str) else None,  # PEFT writes "" for a base without a name
        description=read_description(folder) or "",
        conv1d=bool(document.get("fan_in_fan_out")),
    )


def _own(document: dict[str, Any], pattern: str, matrix: str, field: str) -> Any:
    """A matrix's own value in a pattern of the configuration, or else the value for all."""
    of = document.get(pattern) or {}
    return of.get(get_pattern_key(list(of), matrix), document[field])


def _factors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A [k, n] and B [m, k] of each matrix, float32."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = ": save it with safe_serialization=True" if (folder / "adapter_model.bin").is_file() else ""
        raise UserError(f"{folder} has no adapter_model.safetensors{pickled}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(f"{path} is damaged and was not loaded: {error}") from error
    factors: dict[str, dict[str, Tensor]] = {A: {}, B: {}}
    for key, tensor in tensors.items():
        if EMBEDDING.fullmatch(key) and tensor.ndim <= 2:
            continue  # PEFT also saves the base's own embeddings if the vocabulary was resized
        end = next((end for end in (A, B) if key.startswith(PREFIX) and key.endswith(end)), None)
        if end is None or tensor.ndim != 2 or tensor.dtype not in FLOATS:
            raise UserError(f"{folder} is more than a LoRA of linear layers: it has {key}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path} is damaged and was not loaded: {key} is not finite")
        factors[end][key.removeprefix(PREFIX).removesuffix(end)] = tensor.float()
    a, b = factors[A], factors[B]
    if odd := sorted(a.keys() ^ b.keys()) or [matrix for matrix in a if len(a[matrix]) != b[matrix].shape[1]]:
        raise UserError(f"{path} is damaged and was not loaded: A and B of {odd[0]} do not fit together")
    if not a:
        raise UserError(f"{path} is damaged and was not loaded: it holds no factors")
    return a, b
