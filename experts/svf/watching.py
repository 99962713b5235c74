"""How a base's linear layers see the tokens of a batch, found by watching the base read a few tokens.

Architectures differ in what they give their layers: rows of tokens, all tokens end to end, tokens before rows, only
what a router sends there, or nothing, because the code around reads `layer.weight` itself. No list of names keeps up.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.svf.mixing import Batch, LayerMixture, Order, running
from experts.svf.names import plain_name

ROWS, TOKENS = 3, 7
"""The size of what the base reads. Neither is a multiple of the other, and no other dimension is likely to match."""


@dataclass
class _Seen:
    """What was seen while the base read once."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # one number per token, for every call of a layer
    parents: set[str] = field(default_factory=set)  # modules that contain linear layers and were called
    zeros: dict[str, Tensor] = field(default_factory=dict)  # added to a layer's output, to ask for its gradient
    logits: Tensor | None = None


_orders: WeakKeyDictionary[nn.Module, dict[str, Order]] = WeakKeyDictionary()


def orders_in(base: nn.Module) -> Mapping[str, Order]:
    """The order in which each linear layer sees a batch, by its name in the plain base; empty if watching fails.

    The base reads twice, the second time with other tokens in the middle row. Where rows follow each other, only that
    row changes.
    """
    if base not in _orders:
        ids = _ids(base)
        first, second = _read(base, ids[:, 0]), _read(base, ids[:, 1])
        _orders[base] = {} if first is None or second is None else _compare(first, second, linear_layers(base))
    return _orders[base]


def without_gradient(base: nn.Module) -> dict[str, bool]:
    """The linear layers that no gradient of a text's logits reaches: name → whether the layer is called.

    The outputs of those that are called are only compared, for example by an indexer that picks tokens.
    """
    with torch.inference_mode(False), torch.enable_grad():
        seen = _read(base, _ids(base)[:, 0], with_gradient=True)
        if seen is None or seen.logits is None or not seen.logits.requires_grad or not seen.zeros:
            return {}
        loss = seen.logits.float().logsumexp(-1).sum()
        gradients = torch.autograd.grad(loss, list(seen.zeros.values()), allow_unused=True)
    reached = {name for name, gradient in zip(seen.zeros, gradients, strict=True) if gradient is not None}
    if not reached:  # a base that cuts its own gradient, as old-style checkpointing does, tells nothing
        return {}
    alike = {_pattern(name) for name in reached}  # these tokens met only a few of a router's many experts
    sees = _reads_more_than_text(base)
    return {
        name: name in seen.inputs
        for name in linear_layers(base)
        if _pattern(name) not in alike and not (sees and name.rpartition(".")[0] not in seen.parents)
    }


def linear_layers(base: nn.Module) -> dict[str, nn.Module]:
    """All linear layers by their plain names, including those that carry experts."""
    wrappers = BaseTunerLayer | AuxiliaryTrainingWrapper
    modules: dict[str, nn.Module] = dict(base.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, wrappers))
    linear = [name for name, m in modules.items() if isinstance(m, nn.Linear | Conv1D | BaseTunerLayer)]
    return {plain_name(name): modules[name] for name in linear if not name.startswith(inside)}


def _ids(base: nn.Module) -> Tensor:
    """Tokens [rows, 2, tokens] of two texts, which differ in the middle row."""
    first = 5 + torch.arange(ROWS * TOKENS).view(ROWS, TOKENS)
    second = first.clone()
    second[1] += ROWS * TOKENS
    return torch.stack([first, second], 1).to(next((p.device for p in base.parameters()), "cpu"))


def _read(base: nn.Module, ids: Tensor, with_gradient: bool = False) -> _Seen | None:
    """What is seen while a base reads tokens [rows, tokens]; None if it cannot read them."""
    parameters = [*base.parameters()]
    # Compiled parts would be compiled just for this, and the shards of a base must run equally often.
    if isinstance(base, FSDPModule) or any(p.is_meta for p in parameters):
        return None
    if any("_orig_mod" in name.split(".") for name, _ in base.named_modules()):
        return None
    wanted = {"use_cache": False, "decoder_input_ids": ids}
    own = {key: value for key, value in wanted.items() if key in inspect.signature(base.forward).parameters}
    devices = [*{p.device for p in parameters if p.device.type == "cuda"}]
    carrying = [module for module in linear_layers(base).values() if isinstance(module, BaseTunerLayer)]
    plain: dict[nn.Module, LayerMixture] = dict.fromkeys(cast(list[nn.Module], carrying), LayerMixture())
    try:
        with (
            torch.random.fork_rng(devices),
            torch.set_grad_enabled(with_gradient),
            _watching(base, with_gradient) as seen,
            running(base, Batch(1), plain),
        ):
            if base.training:
                torch.manual_seed(0)  # so that dropout is the same both times
            output = base(input_ids=ids, **own)
    except Exception:  # a base that wants something other than text may raise anything
        return None
    seen.logits = output.get("logits") if isinstance(output, dict) else None
    return seen


@contextmanager
def _watching(base: nn.Module, with_gradient: bool) -> Iterator[_Seen]:
    seen, thread = _Seen(), get_ident()
    layers = linear_layers(base)
    names = {module: name for name, module in layers.items()}
    parents = {name.rpartition(".")[0] for name in layers}

    def note_parent(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if get_ident() == thread:
            seen.parents.add(parent_names[module])

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if get_ident() != thread or not args:
            return None
        name = names[module]
        seen.inputs.setdefault(name, []).append(args[0].detach().float().sum(-1))
        if not with_gradient or not isinstance(output, Tensor):
            return None
        zero = seen.zeros.setdefault(name, torch.zeros((), device=output.device, requires_grad=True))
        return output + zero.to(output.dtype)

    parent_names = {m: plain_name(n) for n, m in base.named_modules() if plain_name(n) in parents}
    hooks = [module.register_forward_hook(note) for module in layers.values()]
    hooks += [module.register_forward_pre_hook(note_parent) for module in parent_names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _compare(first: _Seen, second: _Seen, layers: Iterable[str]) -> dict[str, Order]:
    # Layers of one kind are judged together: some experts of a router may happen to get tokens in a regular order.
    kinds: dict[str, list[str]] = {}
    for name in layers:
        kinds.setdefault(_pattern(name), []).append(name)
    orders: dict[str, Order] = {}
    for names in kinds.values():
        called = [name for name in names if name in first.inputs or name in second.inputs]
        axes = [_axes(first.inputs.get(name, []), second.inputs.get(name, [])) for name in called]
        common = set.intersection(*axes) if axes else set()
        orders |= dict.fromkeys(names, Order(min(common, default=None), bool(called)))
    return orders


def _axes(first: list[Tensor], second: list[Tensor]) -> set[int]:
    """The dimensions along which the rows follow each other in all inputs of a layer."""
    if [x.shape for x in first] != [x.shape for x in second]:
        return set()
    changes = [(x - y).abs() for x, y in zip(first, second, strict=True)]
    return set.intersection(*({axis for axis in range(c.ndim) if _middle_alone(c, axis)} for c in changes))


def _middle_alone(change: Tensor, axis: int) -> bool:
    """Whether, but for rounding, only the middle one of `ROWS` equal parts of a dimension has changed."""
    if change.shape[axis] % ROWS:
        return False
    before, middle, after = change.movedim(axis, 0).reshape(ROWS, -1).mean(1).tolist()
    return max(before, after) < 0.25 * middle


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _reads_more_than_text(base: nn.Module) -> bool:
    return isinstance(base, PreTrainedModel) and cast(Any, base.config).get_text_config() is not base.config
