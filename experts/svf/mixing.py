"""The mixture of a batch belongs to the call that runs it, not to the layers.

A call keeps it in a context variable, which the layers read. Whatever else runs at the same time, in this thread or in
others, does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from experts.outside.errors import UserError


@dataclass(frozen=True)
class Order:
    """How the rows of a batch lie in a layer's input."""

    axis: int | None
    """The dimension along which whole rows follow each other; None if they do not."""
    called: bool = True
    """Whether the layer is called at all. If not, other code reads its weight, or it has no part in reading text."""


@dataclass
class Batch:
    """What the current forward was given: R rows of T tokens, as the base's own forward counts them.

    R is the number of mixtures or a multiple of it: beam search and several samples repeat each row, side by side.
    Where rows hold several texts end to end, each token names its mixture instead.
    """

    mixtures: int
    of_tokens: Tensor | None = None  # [R, T]: the number of each token's mixture; None if each row has one
    exact: bool = False  # whether R must be the number of mixtures
    shape: tuple[int, int] | None = None  # (R, T); None outside the base's forward

    def spread(self, scale: Tensor, x: Tensor, layer: str, order: Order | None) -> Tensor:
        """The mixtures' scale [B, r], aligned with the tokens of a layer's input x [..., n]: broadcasts to [..., r].

        Args:
            order: how the rows lie in x. If that is not known, they are taken to lie as they came into the base: row by
                row, [R, …, n], or with all their tokens end to end, [R·T, n].

        Raises:
            UserError: naming the layer, if x holds anything else, such as the tokens that a router sends there.
        """
        if self.of_tokens is not None:
            return self._spread_by_token(scale, x, layer, order)
        axis = 0 if order is None else order.axis
        size = 0 if axis is None or axis >= x.ndim - 1 else x.shape[axis]
        rows, tokens = self.shape or (size, 1)
        if order is not None:
            whole = x.ndim > 2 or size == rows or self.shape is None or size % (rows * tokens) == 0
            fits = size > 0 and size % rows == 0 and whole
        else:
            fits = (self.shape is not None or x.ndim > 2) and (size == rows or (x.ndim == 2 and size == rows * tokens))
        if axis is None or not fits or size % len(scale):
            raise UserError(
                f"{layer} cannot run rows under {len(scale)} mixtures on an input of shape {list(x.shape)}: it needs "
                "one row per mixture, with every token in order; leave the layer out of target_modules"
            )
        if size > len(scale):
            scale = scale.repeat_interleave(size // len(scale), 0)
        return scale.view(*[1] * axis, size, *[1] * (x.ndim - 2 - axis), -1)

    def _spread_by_token(self, scale: Tensor, x: Tensor, layer: str, order: Order | None) -> Tensor:
        """`spread` for tokens that are each under a mixture of their own."""
        numbers = cast(Tensor, self.of_tokens)
        axis = 0 if order is None else order.axis
        if self.shape is not None and self.shape != tuple(numbers.shape):
            raise UserError(
                f"of_tokens has the shape {list(numbers.shape)}, but the base reads tokens {list(self.shape)}"
            )
        if axis == 0 and x.ndim == 2 and len(x) == numbers.numel():
            numbers = numbers.flatten()
        elif axis == 1:
            numbers = numbers.T
        if axis is None or x.shape[: numbers.ndim] != numbers.shape or x.ndim == numbers.ndim:
            raise UserError(
                f"{layer} cannot tell which text a token belongs to on an input of shape {list(x.shape)}; give every "
                "text a row of its own, or leave the layer out of target_modules"
            )
        return scale[numbers].view(*numbers.shape, *[1] * (x.ndim - 1 - numbers.ndim), -1)


class LoraFactors(NamedTuple):
    """What a LoRA adds to one matrix: B A, where B carries the scaling."""

    a: Tensor  # [k, n]
    b: Tensor  # [m, k]


@dataclass(frozen=True)
class LayerMixture:
    """How one layer runs the mixtures of a batch. Without a weight, a scale or LoRAs it is the base.

    It holds all that it needs, so experts that come and go meanwhile do not disturb a call.
    """

    weight: Tensor | None = None  # [m, n]: W' of the mixture that all rows share
    scale: Tensor | None = None  # [B, r]: each row's multipliers of the singular directions
    u: Tensor | None = None  # [m, r]
    vt: Tensor | None = None  # [r, n]
    loras: tuple[tuple[Tensor, LoraFactors], ...] = ()  # with α [B, 1] of each
    whole: bool = False  # the scale is s·(1 + δ), and the factors stand for all of W'; else s·δ, beside W
    name: str = ""  # the layer's name in the base
    batch: Batch | None = None  # None if all rows share the mixture: B is 1
    order: Order | None = None  # None if it is not known

    @property
    def is_base(self) -> bool:
        """Whether the layer runs unchanged."""
        return self.weight is None and self.scale is None and not self.loras

    def spread(self, scale: Tensor, x: Tensor) -> Tensor:
        """The mixtures' scale [B, r], aligned with the tokens of x [..., n] by `Batch.spread`."""
        return scale if self.batch is None else self.batch.spread(scale, x, self.name, self.order)

    def shared_weight(self) -> Tensor | None:
        """W' [m, n], for code that reads the layer's weight; None for the base's.

        Raises:
            UserError: naming the layer, if rows need different weights and the layer is not known to be called with
                them; or if the layer is quantised.
        """
        if self.batch is None and self.weight is None and not self.is_base:
            raise UserError(
                f"{self.name} is quantised, and the base reads its weight instead of calling it: leave it out of "
                "target_modules"
            )
        if self.batch is not None and not (self.order and self.order.called):
            raise UserError(
                f"{self.name} cannot run rows under different mixtures, because the base reads its weight instead of "
                "calling it; run the rows separately, or leave it out of target_modules"
            )
        return self.weight


# For every call that this thread or task is in, innermost last: what each layer of a base runs.
_calls: ContextVar[tuple[dict[nn.Module, Any], ...]] = ContextVar("mixtures of these calls", default=())
# Compiled code cannot read a context variable. When it sees that no call has a mixture, it need not.
_mixing = False
_open_calls = 0
_counting = RLock()  # reentrant: a generator that is garbage-collected may end its call at any allocation


def mixture_of(module: nn.Module) -> Any:
    """What the innermost call has a module run; None if no call does."""
    if _mixing:
        for call in reversed(_calls.get()):
            if module in call:
                return call[module]
    return None


@contextmanager
def running(base: nn.Module, batch: Batch, mixtures: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Within the block, in this thread or task alone, the layers of `base` run under these mixtures.

    Blocks need not end in the order in which they began, nor in the same task: a generator that holds one open may be
    closed at any time, and an event loop closes it in a task of its own.
    """
    global _mixing, _open_calls
    with _counting:
        _open_calls += 1
        _mixing = True
    own = {**mixtures, base: batch}
    token = _calls.set((*_calls.get(), own))
    try:
        yield
    finally:
        others = tuple(call for call in _calls.get() if call is not own)
        try:
            _calls.reset(token)
        except ValueError:  # another task's variable: the task that began the block keeps the call, but nothing in it
            own.clear()
        _calls.set(others)
        with _counting:
            _open_calls -= 1
            _mixing = _open_calls > 0


INPUTS = ("input_ids", "inputs_embeds", "inputs", "input_features")


def note_shape(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward hook of the base: tells the call how many rows and tokens it is about to run.

    Raises:
        UserError: if each row had to have a mixture and the number of rows differs.
    """
    batch = mixture_of(base)
    if batch is None:
        return
    given = [*map(kwargs.get, INPUTS), *args[:1]]
    batch.shape = next((tuple(x.shape[:2]) for x in given if isinstance(x, torch.Tensor)), None)
    if batch.exact and batch.shape is not None and batch.shape[0] != batch.mixtures:
        raise UserError(f"adapter_names needs a name for each row; got {batch.mixtures} for {batch.shape[0]} rows")


def expect_rows(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Checks that a call of `base` has one row per mixture, before `generate` repeats the rows.

    PEFT passes on the input of `generate`, which is checked here; the input of a forward is left to `note_shape`.
    """
    batch: Batch = mixture_of(base)
    batch.exact = True
    note_shape(base, args, kwargs)
    batch.exact = batch.shape is None
    batch.shape = None


def name_saved_rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward hook of the modules that PEFT saves whole: names the expert whose own module each row takes."""
    rows = mixture_of(module)
    if rows is None:
        return None
    repeats = len(args[0]) // len(rows)
    return args, {**kwargs, "adapter_names": [name for name in rows for _ in range(repeats)]}
