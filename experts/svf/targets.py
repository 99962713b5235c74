"""What the names in a configuration refer to in a base. A name that refers to nothing is a mistake."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from experts.outside.errors import UserError, unknown
from experts.svf.config import SVFConfig
from experts.svf.names import plain_name
from experts.svf.stacks import SVFExperts, fused_parameters

# The heads that PEFT itself trains and saves for these tasks, by the ends of their names; no model has all of them.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def check_names(config: SVFConfig, model: nn.Module) -> None:
    """Checks every name in a configuration against the modules of a base; "all-linear" must have been resolved.

    Raises:
        UserError: for the first name that refers to nothing, with the nearest names that do.
    """
    names = list(module_names(model))
    check_each("target module", config.target_modules, names)
    _check_excluded(config, names)
    _check_parameters(config, model)
    _check_saved(config, names)
    _check_layers(config, names, model)
    adapted = [name for name in names if check_target_module_exists(config, name)]
    adapted += targeted_parameters(config, model)
    for pattern in config.rank_pattern:
        if adapted and not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
            raise unknown("module in rank_pattern", pattern, _near(pattern, adapted))


def module_names(model: nn.Module) -> Iterable[str]:
    """The plain names of all modules, but for what is inside modules that adapters wrap."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper | SVFExperts):
            inside += (f"{name}.",)
        yield plain_name(name)


def targeted_parameters(config: SVFConfig, model: nn.Module) -> list[str]:
    """The plain names of the parameters that `target_parameters` refers to, in the layers that are to be adapted."""
    alone = copy.copy(config)
    alone.target_modules = cast(Any, {*(config.target_parameters or ())})
    return [name for name in fused_parameters(model) if check_target_module_exists(alone, name)]


def check_each(kind: str, wanted: Iterable[str] | str | None, names: list[str]) -> None:
    """Raises UserError for a name in a list that is neither a module's full name nor its last parts, as in PEFT."""
    if wanted is None or isinstance(wanted, str):
        return
    suffixes = {name.split(".", k)[-1] for name in names for k in range(name.count(".") + 1)}
    for name in sorted(wanted):
        if name not in suffixes:
            raise unknown(kind, name, _near(name, names))


def _near(wanted: str, names: list[str]) -> set[str]:
    """What `wanted` may have meant: similar full names if it has dots, else similar last parts."""
    whole = difflib.get_close_matches(wanted, names, cutoff=0.6) if "." in wanted else []
    return set(whole) or {name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()}


def _check_excluded(config: SVFConfig, names: list[str]) -> None:
    excluded = config.exclude_modules
    check_each("excluded module", excluded, names)
    if isinstance(excluded, str):
        if not any(re.fullmatch(excluded, name) for name in names):
            raise UserError(f"exclude_modules {excluded!r} matches no module's whole name")
        return
    adapted = [name for name in names if check_target_module_exists(config, name)]
    for name in sorted(excluded or ()):  # PEFT leaves out what is called so, and nothing inside it
        if any(f".{name}." in f".{each}" for each in adapted):
            raise UserError(
                f"exclude_modules: {name!r} only leaves out modules of that name, not those inside them, which are to "
                f"be adapted; the regular expression '.*{re.escape(name)}.*' leaves out both"
            )


def _check_parameters(config: SVFConfig, model: nn.Module) -> None:
    fused = [*fused_parameters(model)]
    for wanted in config.target_parameters or ():
        ends = tuple(name for name, _ in model.named_parameters() if f".{name}".endswith(f".{wanted}"))
        if ends and not any(f".{name}".endswith(f".{wanted}") for name in fused):
            raise UserError(
                f"{wanted!r} in target_parameters is not a parameter [experts, m, n] that holds mixture-of-experts "
                "matrices; linear layers go into target_modules"
            )
    if config.target_parameters and not fused:
        raise UserError("the base has no parameters that hold mixture-of-experts matrices: leave out target_parameters")
    check_each("target parameter", config.target_parameters, fused)


def _check_saved(config: SVFConfig, names: list[str]) -> None:
    saved, heads = config.modules_to_save or [], HEADS.get(config.task_type or "", ())
    for module in saved:
        if module not in heads and not any(name.endswith(module) for name in names):
            raise unknown("module to save", module, _near(module, names))
    if heads and not any(name.endswith(tuple(saved)) for name in names):
        raise UserError(
            f"the base has no {' or '.join(heads)} to train for {config.task_type}; name its head in modules_to_save"
        )


def _check_layers(config: SVFConfig, names: list[str], model: nn.Module) -> None:
    layers = config.layers_to_transform
    for layer in [layers] if isinstance(layers, int) else layers or []:
        alone = copy.copy(config)
        alone.layers_to_transform = layer
        named = any(check_target_module_exists(alone, name) for name in names)
        if not named and not targeted_parameters(alone, model):
            raise UserError(f"layers_to_transform: no module that target_modules names is in a layer {layer}")
