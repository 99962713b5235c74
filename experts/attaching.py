"""Attaches the adapters of a library to its base, after checking for everything that PEFT would stumble over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.exchange.lora import Lora
from experts.expert import SUFFIX, Expert, read_config, read_z
from experts.outside.adapters import PREFIX
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFModel
from experts.svf.fingerprint import read_sketch, refuse_other_base
from experts.svf.layer import SVFLinear
from experts.svf.names import plain_modules
from experts.svf.quantised import shape_of
from experts.svf.scaled import SVFLayer
from experts.svf.stacks import fused_parameters

BASE = "base"  # the name of the identity expert; no expert of a library may have it


def load_expert(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the expert of `folder` active and frozen.

    Raises:
        UserError: if the expert is damaged or was trained on another base.
    """
    wanted = read_config(folder).base_fingerprint
    if wanted is not None:
        refuse_other_base(f"the expert in {folder}", wanted, read_sketch(folder), base)
    return attach_expert(base, folder, "default")


def attach_expert(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Adds an expert to a model, after checking every vector that PEFT would stumble over."""
    config, vectors = check_fit(folder, model)
    if not isinstance(model, PeftModel):
        _refuse_another(folder, vectors, model, name)
    config.inference_mode = True
    config.base_model_name_or_path = None  # PEFT puts the base's own name there, with a warning if it differs
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = cast(PeftModel, get_peft_model(model, config, name))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the expert in {folder} cannot be loaded: {' '.join(str(error).split())}") from error
    modules = plain_modules(model.get_base_model())
    adapted = {key for key, module in modules.items() if isinstance(module, SVFLayer) and name in module.svf_z}
    if odd := sorted(adapted ^ set(vectors)):
        where = "adapter_config.json" if odd[0] in adapted else "adapter_model.safetensors"
        raise UserError(f"the expert in {folder} is damaged: only {where} mentions {odd[0]}")
    # PEFT's own reader would also load any embeddings in the file into the base.
    set_peft_model_state_dict(model, {f"{PREFIX}{matrix}{SUFFIX}": z for matrix, z in vectors.items()}, name)
    return model.eval()


def _refuse_another(folder: Path, vectors: dict[str, Tensor], base: PreTrainedModel, name: str) -> None:
    """Raises UserError if another PEFT model already wraps the base and carries a different expert of this name.

    PEFT would replace it with the new one, for that model too.
    """
    for matrix, layer in plain_modules(base).items():
        if isinstance(layer, SVFLayer) and name in layer.svf_z:
            carried, wanted = layer.svf_z[name].detach(), vectors.get(matrix)
            if wanted is None or not torch.equal(carried, wanted.to(carried)):
                raise UserError(
                    f"the base already carries an expert {name!r}, but not the one in {folder}; load the base anew, or "
                    "unload() the model that carries it"
                )


def check_fit(folder: Path, model: PreTrainedModel | PeftModel) -> tuple[SVFConfig, dict[str, Tensor]]:
    """The configuration and z of an expert, once it is known that they fit a base.

    Raises:
        UserError: if the base lacks one of the matrices, or a z has the wrong number of values for its matrix.
    """
    config, vectors = read_config(folder), read_z(folder)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    modules, fused = plain_modules(plain), fused_parameters(plain)
    for matrix, z in vectors.items():
        if z.ndim == 2 or matrix in fused:
            _check_stack(folder, matrix, z, fused.get(matrix), config.rank_of(matrix))
            continue
        module = modules.get(matrix)
        if module is None:
            raise UserError(f"the expert in {folder} adapts {matrix}, which the base does not have")
        if not isinstance(module, nn.Linear | Conv1D | SVFLinear):
            raise UserError(f"the expert in {folder} adapts {matrix}, which is not a linear layer of the base")
        rank = min(*shape_of(module), config.rank_of(matrix) or len(z))
        if len(z) != rank:
            raise UserError(f"the expert in {folder} has {len(z)} values for {matrix}, which needs {rank}")
    return config, vectors


def _check_stack(folder: Path, matrix: str, z: Tensor, weight: Tensor | None, rank: int | None) -> None:
    """Raises UserError if a base has no stack of matrices W [E, m, n] for an expert's z [E, r]."""
    if weight is None:
        raise UserError(f"the expert in {folder} adapts {matrix}, which is not a stack of matrices in the base")
    wanted = [len(weight), min(*weight.shape[1:], rank or z.shape[-1])]
    if list(z.shape) != wanted:
        raise UserError(f"the expert in {folder} has {list(z.shape)} values for {matrix}, which needs {wanted}")


def attach_lora(model: PreTrainedModel | PeftModel, lora: Lora, name: str) -> PeftModel:
    """Adds a LoRA to a model, for mixtures to name beside the experts; the active adapters stay active.

    Raises:
        UserError: if the name is taken, the base lacks a matrix or has it in another shape, or the model carries
            adapters that are not experts.
    """
    if not isinstance(model, PeftModel):
        model = with_identity(model, {_smallest_matrix(model, lora): (1,)})
    if not isinstance(model.base_model, SVFModel):
        raise UserError(
            "the model already carries adapters of another kind, so it cannot carry LoRAs; load the base anew for them"
        )
    model.base_model.add_lora(name, lora.factors)
    return model


def check_lora(what: str, lora: Lora, model: PreTrainedModel | PeftModel) -> None:
    """Raises UserError, with the reason, if a LoRA does not fit a base."""
    if (fault := fault_of_lora(lora, model)) is not None:
        raise UserError(f"{what} {fault}")


def fault_of_lora(lora: Lora, model: PreTrainedModel | PeftModel) -> str | None:
    """What is wrong with the first matrix of a LoRA's that a base lacks or has in another shape; None if all fit."""
    modules = plain_modules(model.get_base_model() if isinstance(model, PeftModel) else model)
    for matrix, factors in lora.factors.items():
        module = modules.get(matrix)
        if module is None:
            return f"adapts {matrix}, which the base does not have"
        if not isinstance(module, nn.Linear | Conv1D | SVFLinear):
            return f"adapts {matrix}, which is not a linear layer of the base"
        shape, wanted = list(shape_of(module)), [len(factors.b), factors.a.shape[1]]
        if shape != wanted:
            return f"is for a {matrix} of shape {wanted}, but the base's has {shape}"
    return None


def with_identity(base: PreTrainedModel, shapes: Mapping[str, Sequence[int]]) -> PeftModel:
    """`base` as a model that carries experts: so far one, called `BASE`, which is the base bit for bit.

    The first expert of a base becomes the active one, and calls that are already running would see it. They see this.

    Args:
        shapes: what the identity adapts: matrix name → the shape of its z.
    """
    identity = Expert({matrix: torch.ones(*shape) for matrix, shape in shapes.items()})
    return cast(PeftModel, get_peft_model(base, identity.config, BASE)).eval()


def _smallest_matrix(base: PreTrainedModel, lora: Lora) -> str:
    """The matrix where an identity costs least, among those that a LoRA adapts and an expert may adapt."""
    modules, head = plain_modules(base), base.get_output_embeddings()
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D | SVFLinear)}
    able = {name: module for name, module in linear.items() if module is not head and "base_layer" not in name}
    own = {name: module for name, module in able.items() if name in lora.a} or able
    if not own:
        raise UserError("the base has no linear layer that an adapter could adapt")
    return min(own, key=lambda name: math.prod(shape_of(own[name])))
