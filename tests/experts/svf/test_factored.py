"""A weight that is kept as W + L R is W + L R, whatever is done with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers.integrations.moe  # noqa: F401 (registers its product)
from torch import Tensor

from experts.svf.factored import FactoredWeight

E, P, Q, R, TOKENS = 3, 8, 16, 5, 6


def factored(dtype: torch.dtype = torch.float64) -> tuple[FactoredWeight, Tensor]:
    """The same weight [E, P, Q] in factors and written out."""
    generator = torch.Generator().manual_seed(0)
    w, left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((E, P, Q), (E, P, R), (E, R, Q))
    )
    return FactoredWeight.of(w, left, right), w + left @ right


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda w: F.linear(x(TOKENS, Q), w[1]),
    "linear with bias": lambda w: F.linear(x(TOKENS, Q), w[torch.tensor(2)], x(P)),
    "matmul": lambda w: x(TOKENS, P) @ w[0],
    "matmul from the left": lambda w: w[0] @ x(Q, TOKENS),
    "mm": lambda w: torch.mm(x(TOKENS, P), w[0]),
    "bmm": lambda w: torch.bmm(x(E, TOKENS, P), w),
    "bmm from the left": lambda w: torch.bmm(w, x(E, Q, 1)),
    "transposed": lambda w: torch.bmm(x(E, TOKENS, Q), w.transpose(1, 2)),
    "transposed, from behind": lambda w: x(TOKENS, Q) @ w[1].transpose(-2, -1),
    "gathered": lambda w: torch.bmm(w[torch.tensor([2, 0, 2, 1])], x(4, Q, 1)),
    "a slice": lambda w: torch.bmm(x(2, TOKENS, P), w[1:]),
    "einsum": lambda w: torch.einsum("tq,epq->tep", x(TOKENS, Q), w),
    "baddbmm": lambda w: torch.baddbmm(x(E, TOKENS, Q), x(E, TOKENS, P), w),
    "T": lambda w: w[0].T,
    "mT": lambda w: w.mT @ x(E, P, 1),
    "another transposition": lambda w: w.transpose(0, 1),
    "rows of a matrix": lambda w: w[0][2],
    "one number": lambda w: w[1, 2, 3],
    "by a mask": lambda w: w[torch.tensor([True, False, True])],
    "split": lambda w: torch.stack([part.sum() for part in w.unbind()]),
    "sum": lambda w: w.sum(1),
    "in a list": lambda w: torch.cat([w[0], w[1]]),
    "by its name": lambda w: F.linear(input=x(TOKENS, Q), weight=w[1]) + torch.bmm(x(1, TOKENS, P), mat2=w[:1]).sum(),
    "a vector": lambda w: x(P) @ w[0],
    "two of them": lambda w: torch.bmm(w, w.transpose(1, 2)),
    "clone": lambda w: w.clone(),
    "to": lambda w: w.to(torch.float32),
    "the difference from itself": lambda w: w - w,
}

ENDS = torch.tensor([2, 2, TOKENS], dtype=torch.int32)
GROUPED: dict[str, Callable[[Tensor], Tensor]] = {  # which single precision has
    "grouped": lambda w: F.grouped_mm(x(TOKENS, P).float(), w, offs=ENDS),
    "grouped, transposed": lambda w: F.grouped_mm(x(TOKENS, Q).float(), w.transpose(-2, -1), offs=ENDS),
    "grouped by transformers": lambda w: torch.ops.transformers.grouped_mm_fallback(x(TOKENS, P).float(), w, ENDS),
}


@pytest.mark.parametrize("way", GROUPED)
def test_grouped_products_are_products_of_the_parts(way: str) -> None:
    weight, dense = factored(torch.float32)
    written_out: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experts.svf.factored._written_out", lambda value: written_out.append(value) or value)
        result = GROUPED[way](weight)
    torch.testing.assert_close(result, GROUPED[way](dense), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(value, FactoredWeight) for value in written_out)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_sum_of_its_parts_in_every_way(way: str) -> None:
    weight, dense = factored()
    result = WAYS[way](weight)
    wanted = WAYS[way](dense)
    assert type(result) is Tensor or isinstance(result, FactoredWeight)
    torch.testing.assert_close(result + 0, wanted, rtol=1e-5, atol=1e-5)


def test_it_has_the_looks_of_the_weight() -> None:
    weight, dense = factored()
    assert weight.shape == dense.shape
    assert (weight.dtype, weight.device, weight.ndim, len(weight)) == (dense.dtype, dense.device, 3, E)
    assert weight.size(1) == P
    assert weight[0].shape == (P, Q)


def test_products_do_not_write_it_out() -> None:
    """The factors get their gradient without one of the whole weight."""
    weight, _ = factored()
    left = weight._left.requires_grad_()
    y = F.linear(x(TOKENS, Q), FactoredWeight.of(weight._w, left, weight._right)[0])
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        y = F.linear(x(TOKENS, Q), FactoredWeight.of(weight._w, left, weight._right)[0])
    y.sum().backward()
    assert left.grad is not None
    assert (P, Q) not in saved
