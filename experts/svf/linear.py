"""What "all-linear" means in a base: the linear layers where an expert can learn, and none that only choose."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from experts.svf.config import SVFConfig
from experts.svf.names import plain_modules, plain_name
from experts.svf.quantised import is_quantised
from experts.svf.stacks import fused_matrices, fused_parameters
from experts.svf.targets import module_names
from experts.svf.watching import without_gradient

logger = logging.getLogger(__name__)


def resolve_all_linear(config: SVFConfig, model: nn.Module, heads: tuple[str, ...]) -> None:
    """Replaces "all-linear" with names in a configuration, and logs what is left out and why.

    In a model that also sees or hears, only the language part is meant, unless the configuration excludes anything.

    Args:
        heads: ends of names that are not targets either.
    """
    language = _language_part(model)
    if config.exclude_modules is None and language is not None:
        config.exclude_modules = rf"(?!{re.escape(language)}\.).*"  # vision tower and projector
    _maybe_include_all_linear_layers(cast(Any, config), model)
    names = {plain_name(name) for name in cast(Any, config.target_modules)} & {*module_names(model)}
    names = {name for name in names if not name.endswith(heads)}
    fused = fused_parameters(model)
    if fused and not config.target_parameters:
        logger.warning(
            "all-linear leaves out %d stacks of mixture-of-experts matrices, such as %s; name them in "
            "target_parameters to adapt them as well",
            len(fused),
            next(iter(fused)),
        )
    for why, unsuitable in left_out(model, names).items():
        logger.info("all-linear leaves out %s: %s", _said(unsuitable), why)
        names -= unsuitable
    if config.layers_to_transform is not None:  # PEFT does not apply these to full names
        names = {name.rpartition(".")[2] for name in names}
    config.target_modules = cast(Any, names)


def left_out(model: nn.Module, names: set[str]) -> dict[str, set[str]]:
    """Reason → the layers among `names` that "all-linear" leaves out for it."""
    modules = plain_modules(model)
    routing = _routers(model) & names
    special = {name for name in names - routing if not multiplies(modules[name])}
    common = tied(model) & names - routing - special
    rest = names - routing - special - common
    called = {name: of for name, of in without_gradient(model).items() if name in rest}
    uncalled = {name for name, is_called in called.items() if not is_called}
    reasons = {
        "part of a router, which only chooses experts": routing,
        "more than a multiplication by a weight": special,
        "weight shared with another layer": common,
        "not called when the base reads text": uncalled,
        "no gradient, because it only picks tokens or its output is not used": called.keys() - uncalled,
    }
    return {why: found for why, found in reasons.items() if found}


def tied(model: nn.Module) -> set[str]:
    """Linear layers that share their weight with another: merging into it would change both."""
    layers = {name: module for name, module in plain_modules(model).items() if isinstance(module, nn.Linear | Conv1D)}
    owners = Counter(id(layer.weight) for layer in layers.values())
    return {name for name, layer in layers.items() if owners[id(layer.weight)] > 1}


def multiplies(module: nn.Module) -> bool:
    """Whether a linear layer computes x Wᵀ + b and nothing else; a quantised one is not tested."""
    if isinstance(module, BaseTunerLayer) or type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if is_quantised(module):
        return True
    weight, bias = cast(Any, module).weight, cast(Any, module).bias
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
        return True
    x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device).view(2, -1).to(weight.dtype)
    try:
        with torch.no_grad():
            y = module(x)
            return isinstance(y, Tensor) and torch.allclose(y, F.linear(x, weight, bias), rtol=1e-2, atol=1e-3)
    except Exception:  # it wants a different input
        return False


def _routers(model: nn.Module) -> set[str]:
    """Linear layers that give one number for each expert beside them, and those inside a module called a router."""
    modules = plain_modules(model)
    experts: dict[str, set[int]] = {}  # block that holds fused experts → how many there are
    for name, module in modules.items():
        for matrices in fused_matrices(module).values():
            if len(matrices) < min(matrices.shape[1:]):  # XLNet has [n, heads, width]
                block = name.removesuffix(".base_layer").rpartition(".")[0]
                experts.setdefault(block, set()).add(len(matrices))
    called = tuple(f"{name}." for name, module in modules.items() if "router" in type(module).__name__.lower())
    routers = set()
    for name, module in modules.items():
        if isinstance(module, nn.Linear):
            parent = name.rpartition(".")[0]
            beside = experts.get(parent, set()) | experts.get(parent.rpartition(".")[0], set())
            if module.out_features in beside or name.startswith(called):
                routers.add(name)
    return routers


def _language_part(model: nn.Module) -> str | None:
    """The name of the language model inside a model that also sees or hears; None for one that only reads."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig) or config.get_text_config() is config:
        return None
    decoder = cast(Any, model).get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder and name), None)


def _said(names: set[str]) -> str:
    """2 × dt_proj, x_proj."""
    ends = Counter(name.rpartition(".")[2] for name in names)
    return ", ".join(end if count == 1 else f"{count} × {end}" for end, count in sorted(ends.items()))
