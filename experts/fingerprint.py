"""What tells one base from another."""

from __future__ import annotations

import hashlib

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experts.svf.layer import SVFLinear
from experts.svf.model import fused_matrices
from experts.svf.names import plain_name


def fingerprint(model: nn.Module) -> str:
    """A hash over the linear weights of a base, the same with and without adapters, in float32 and in bfloat16.

    Every `nn.Linear` and `Conv1D` counts, whatever an expert adapts, and the fused tensors of a mixture of experts. The
    output embeddings do not: their size follows the vocabulary, and an added padding token does not make another base.
    """
    digest = hashlib.sha256()
    weights = _linear_weights(model)
    for name in sorted(weights):
        rounded = weights[name].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {list(rounded.shape)}".encode())
        digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name in the plain base → weight. Parts of adapters are passed over; a merged layer gives its own weight."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weights: dict[str, Tensor] = {}
    adapted: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(adapted) and adapted:
            continue
        plain = plain_name(name).removeprefix("base_model.model.")
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{name}.",)
            base = module.get_base_layer()
            if isinstance(module, SVFLinear):
                weights[plain] = module.pristine_weight.T if module.transposed else module.pristine_weight
            elif isinstance(base, nn.Linear | Conv1D):
                weights[plain] = base.weight
        elif isinstance(module, nn.Linear | Conv1D) and module is not head:
            weights[plain] = module.weight
        else:
            weights |= {f"{plain}.{key}": tensor for key, tensor in fused_matrices(module).items()}
    return weights
