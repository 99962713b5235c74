"""Imports expert files of the paper's own code (github.com/SakanaAI/self-adaptive-llms) as experts of this project.

`policy_params.pt` holds one vector p [min(m, n)] for every matrix whose name contains "mlp", keyed by the matrix's
index among them, in the order of the base's state dict. `learnable_params.pt` holds the same, keyed by the matrices'
names. Both mean

    W' = U diag(s·σ(p)) Vᵀ · Σs / Σ(s·σ(p)),

which is z = `effective_z(p, s)`. A constant factor in front of σ cancels.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experts.expert import Expert
from experts.outside.errors import UserError
from experts.outside.tensor_files import read_tensors
from experts.svf.decomposition import decompose, each_matrix
from experts.svf.fingerprint import fingerprint, sketch
from experts.svf.sigmoid import effective_z

INDEXED = re.compile(r"learnable_params_module_list\.(\d+)")


def import_expert(path: Path, base: PreTrainedModel, base_name: str, description: str) -> Expert:
    """The expert in `path`, which the reference code trained on `base`. No code in the file is run.

    Raises:
        UserError: if the file is missing, damaged, wants to run code, holds something else, or belongs to a base with
            other matrices.
    """
    weights = {
        key.removesuffix(".weight"): weight
        for key, weight in base.state_dict().items()
        if "mlp" in key and key.endswith(".weight") and weight.ndim == 2
    }
    vectors = _by_matrix(path, read_tensors(path), list(weights))
    for matrix, p in vectors.items():
        r = min(weights[matrix].shape)
        if p.shape != (r,):
            raise UserError(
                f"{path} has {list(p.shape)} values for {matrix}, which has {r} singular values; "
                "is this the base it was trained on?"
            )
        if not torch.isfinite(p).all():
            raise UserError(f"{path} is damaged and was not loaded: what it has for {matrix} is not finite")
    spectra = each_matrix(lambda matrix: decompose(weights[matrix]).s.float().cpu(), list(vectors), base.device)
    z = {matrix: effective_z(p.float(), s) for (matrix, p), s in zip(vectors.items(), spectra, strict=True)}
    return Expert(z, base_name, fingerprint(base), description, sketch=sketch(base))


def _by_matrix(path: Path, document: dict[str, Tensor], matrices: list[str]) -> dict[str, Tensor]:
    """Matrix → p, from names, or from indices that run through all of `matrices`."""
    named = {key.removesuffix(".weight"): p for key, p in document.items()}
    if named and named.keys() <= set(matrices):
        return named
    indices = [INDEXED.fullmatch(key) for key in document]
    if not document or not all(indices):
        strange = next((key for key, index in zip(document, indices, strict=True) if not index), "nothing")
        raise UserError(f"{path} is not an expert of the reference code for this base: it holds {strange}")
    by_index = {int(index[1]): p for index, p in zip(indices, document.values(), strict=True) if index}
    if sorted(by_index) != list(range(len(matrices))):
        raise UserError(
            f"{path} has {len(by_index)} vectors, but the base has {len(matrices)} MLP matrices; "
            "give the base that it was trained on"
        )
    return {matrices[index]: p for index, p in sorted(by_index.items())}
