"""Rows of one batch under mixtures of their own equal the same rows alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear, mixing
from experts.svf.mixing import mixture_of

IDS = torch.arange(3, 63).view(4, 15)


@pytest.fixture
def model(tiny_model: Any) -> PeftModel:
    """Three experts of different ranks on different matrices: a (all, full rank), b (all, rank 8), c (two kinds)."""
    model = get_peft_model(tiny_model, SVFConfig(), adapter_name="a").eval()
    model.add_adapter("b", SVFConfig(rank=8))
    model.add_adapter("c", SVFConfig(target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVFLinear):
                for z in layer.svf_z.values():
                    z.add_(0.5 * torch.randn(z.shape, generator=generator))
    return model


def logits(model: PeftModel, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def under(model: PeftModel, name: str, ids: Tensor) -> Tensor:
    if name == "__base__":
        with model.disable_adapter():
            return logits(model, ids)
    model.set_adapter(name)
    return logits(model, ids)


def test_adapter_names_give_each_row_its_expert(model: PeftModel) -> None:
    names = ["c", "__base__", "a", "b"]
    mixed = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], under(model, name, IDS)[row], atol=1e-4, rtol=1e-4)
    assert torch.equal(mixed[1], under(model, "__base__", IDS)[1])


def test_a_mixture_is_linear_in_its_weights(model: PeftModel) -> None:
    """The composed weight of α is W + Σ α_k (W_k − W), whatever the ranks and matrices of the experts."""
    alpha = torch.tensor([0.25, 0.5, 0.125])
    weights = torch.stack([alpha, torch.zeros(3)])  # the row of the base keeps the scale a difference
    layers = [module for module in model.modules() if isinstance(module, SVFLinear)]
    with model.base_model.mixed(["a", "b", "c"], weights):
        scales = [mixture_of(layer).scale[0] for layer in layers]
    with model.base_model.mixed(["a", "b", "c"], weights[:1]):
        merged = [mixture_of(layer).weight for layer in layers]
    for layer, scale, weight in zip(layers, scales, merged, strict=True):
        experts = {name: a for name, a in zip("abc", alpha, strict=True) if name in layer.svf_z}
        wanted = sum(a * layer.difference(layer.delta([name]).detach()) for name, a in experts.items())
        torch.testing.assert_close((layer.svf_u * scale) @ layer.svf_vt, wanted)
        torch.testing.assert_close(weight, layer.pristine_weight + wanted)


def test_a_matrix_can_have_weights_of_its_own(model: PeftModel) -> None:
    matrices = {name: layer for name, layer in model.base_model.model.named_modules() if isinstance(layer, SVFLinear)}
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    own = dict.fromkeys(matrices, weights)
    with model.base_model.mixed(["a", "b"], torch.zeros(4, 2), own):
        everywhere = logits(model)
    with model.base_model.mixed(["a", "b"], weights):
        assert torch.equal(logits(model), everywhere)
    one = next(iter(matrices))
    with model.base_model.mixed(["a", "b"], weights[:1], {one: torch.tensor([[0.0, 2.0]])}):
        for name, layer in matrices.items():
            wanted = layer.merge_delta(2 * layer.delta(["b"]) if name == one else layer.delta(["a"]))
            torch.testing.assert_close(mixture_of(layer).weight, wanted)
    with (
        pytest.raises(UserError, match="unknown adapted matrix 'lm_head'"),
        model.base_model.mixed(["a"], weights[:, :1], {"lm_head": weights[:, :1]}),
    ):
        pass


def test_rows_that_share_a_mixture_run_on_kept_weights(model: PeftModel) -> None:
    """As many as allowed are kept, the one used longest ago is dropped, and none is used after its z has changed."""

    def weight(**alpha: float) -> Tensor:
        with model.base_model.mixed([*alpha], torch.tensor([[*alpha.values()]]).expand(4, -1)):
            logits(model)
            return mixture_of(layer).weight

    layer = next(module for module in model.modules() if isinstance(module, SVFLinear))
    first, second = weight(a=1.0), weight(b=1.0)
    assert weight(a=1.0) is first
    assert weight(a=0.5) is not first
    assert weight(a=1.0) is first  # b was the one used longest ago
    assert weight(b=1.0) is not second
    with torch.no_grad():
        layer.svf_z["b"].add_(1)
    torch.testing.assert_close(weight(b=1.0), layer.merge_delta(layer.delta(["b"]).detach()))
    layer.svf_z["b"].data.add_(1)
    layer.invalidate()
    torch.testing.assert_close(weight(b=1.0), layer.merge_delta(layer.delta(["b"]).detach()))


def test_a_row_of_the_base_is_the_base_bit_for_bit(model: PeftModel) -> None:
    base = under(model, "__base__", IDS)
    with model.base_model.mixed(["a"], torch.tensor([[1.0], [0.0], [0.0], [0.5]])):
        assert torch.equal(logits(model)[1:3], base[1:3])
    with model.base_model.mixed(["a"], torch.zeros(4, 1)):
        assert torch.equal(logits(model), base)


def test_rows_equal_the_same_rows_alone(model: PeftModel) -> None:
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.3, 0.3, 0.3], [0, -0.5, 1.5]])
    with model.base_model.mixed(["a", "b", "c"], weights):
        together = logits(model)
    for row in range(4):
        with model.base_model.mixed(["a", "b", "c"], weights[row : row + 1]):
            torch.testing.assert_close(logits(model, IDS[row : row + 1])[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_generation_through_the_cache_with_left_padding(model: PeftModel, search: dict[str, Any]) -> None:
    names = ["a", "__base__", "b"]
    prompts = [[3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13]]
    ids = torch.tensor([[0] * (6 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) for p in prompts])
    many = search.get("num_return_sequences", 1)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **search}
    torch.manual_seed(0)
    together = model.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **settings)[:, 6:]
    assert len(together) == 3 * many
    if many > 1:
        return  # samples differ; that they were drawn at all is the test
    for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        alone = model.generate(input_ids=torch.tensor([prompt]), adapter_names=[name], **settings)[0, len(prompt) :]
        assert together[row].tolist() == alone.tolist()


def test_a_batch_of_the_base_leaves_frozen_experts_frozen(model: PeftModel) -> None:
    model.requires_grad_(False)
    with model.base_model.mixed([], torch.zeros(4, 0)):
        logits(model)
    with model.disable_adapter():
        logits(model)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("a")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    with model.disable_adapter():
        logits(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable != []


def test_a_mixture_is_seen_by_its_own_thread_alone(model: PeftModel) -> None:
    active = logits(model)
    with model.base_model.mixed(["b"], torch.ones(4, 1)), ThreadPoolExecutor(1) as pool:
        under_b = logits(model)
        assert torch.equal(pool.submit(logits, model).result(), active)
        with model.base_model.mixed(["a", "c"], torch.rand(4, 2)):
            logits(model)
        assert torch.equal(logits(model), under_b)
    assert not torch.allclose(under_b, active)


def test_experts_that_come_and_go_do_not_disturb_a_call(model: PeftModel) -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    with model.base_model.mixed(["b", "c"], weights):
        wanted = logits(model)
        model.delete_adapter("b")
        model.add_adapter("d", SVFConfig())
        assert torch.equal(logits(model), wanted)


def test_a_layer_without_the_rows_tokens_in_their_order_is_refused_by_name(model: PeftModel) -> None:
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if isinstance(layer, SVFLinear)}
    name, layer = next(iter(layers.items()))
    alone = layer(torch.ones(1, layer.in_features))
    with model.base_model.mixed(["a", "b"], torch.eye(2)):
        logits(model, IDS[:2])  # 2 rows of 15 tokens
        end_to_end = layer(torch.ones(30, layer.in_features))
        torch.testing.assert_close(end_to_end[:15], alone.expand(15, -1), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(end_to_end[15], alone[0])
        for shape in ((7, 1), (28, 1), (3, 2, 1), (15, 2, 1)):
            with pytest.raises(UserError, match=f"{name} cannot run rows under 2 mixtures"):
                layer(torch.ones(*shape[:-1], layer.in_features))


def test_an_error_leaves_no_mixture_behind(model: PeftModel) -> None:
    wanted = under(model, "a", IDS)
    with pytest.raises(ValueError, match="a name for each row; got 3 for 4 rows"):
        logits(model, adapter_names=["a", "b", "c"])  # four rows
    assert torch.equal(logits(model), wanted)


def test_mistakes_are_refused(model: PeftModel) -> None:
    with pytest.raises(UserError, match="unknown expert 'd'"):
        logits(model, adapter_names=["d"] * 4)
    for weights in (torch.ones(4, 2), torch.full((4, 3), float("nan")), torch.ones(3)):
        with (
            pytest.raises(UserError, match=r"weights must be finite and \[rows, 3\]"),
            model.base_model.mixed("abc", weights),
        ):
            pass
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge_adapter"):
        logits(model, adapter_names=["a"] * 4)
    model.unmerge_adapter()
    with pytest.raises(ValueError, match="inference"):
        model.train()(input_ids=IDS, adapter_names=["a"] * 4)


def test_blocks_of_generators_end_in_any_order_and_in_any_task(model: PeftModel) -> None:
    """Whatever closes them: nothing is left behind, and what still runs keeps its mixture."""
    model.set_adapter("c")
    wanted = logits(model)
    with model.base_model.mixed(["b"], torch.ones(1, 1)):
        of_b = logits(model)

    def block(name: str) -> Iterator[None]:
        with model.base_model.mixed([name], torch.ones(1, 1)):
            yield

    first, second = block("a"), block("b")
    next(first), next(second)
    first.close()  # type: ignore[attr-defined]
    assert torch.equal(logits(model), of_b)
    second.close()  # type: ignore[attr-defined]
    assert torch.equal(logits(model), wanted)

    async def pieces() -> AsyncIterator[None]:
        with model.base_model.mixed(["a"], torch.ones(1, 1)):
            yield

    async def left_by_another_task() -> Tensor:
        left = pieces()
        await anext(left)
        await asyncio.create_task(left.aclose())  # type: ignore[attr-defined]
        return logits(model)

    assert torch.equal(asyncio.run(left_by_another_task()), wanted)
    assert mixing._open_calls == 0


def test_vectors_with_new_data_are_not_answered_with_old_weights(model: PeftModel) -> None:
    """Such as evolution strategies give them; also where a new vector lies where an old one lay."""
    model.set_adapter("a")
    layers = [module for module in model.modules() if isinstance(module, SVFLinear)]
    for layer in layers:
        layer.svf_z["a"].requires_grad_(False)
    for change in ("data", "replaced", "replaced", "replaced"):
        logits(model)
        for layer in layers:
            new = torch.randn(len(layer.svf_z["a"]))
            if change == "data":
                layer.svf_z["a"].data = new
            else:
                del layer.svf_z["a"]
                layer.svf_z["a"] = torch.nn.Parameter(new, requires_grad=False)
        got = logits(model)
        with model.base_model.mixed(["a"], torch.ones(1, 1)):
            torch.testing.assert_close(logits(model), got)
        for layer in layers:
            layer.invalidate()
        torch.testing.assert_close(logits(model), got)


def test_texts_that_lie_end_to_end_are_each_under_their_own_mixture(model: PeftModel) -> None:
    weights = torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, -0.5]])
    whose, lengths = [2, 0, 1, 3, 1, 0], [4, 7, 4, 10, 3, 2]  # of texts in two rows of 15 tokens
    numbers = torch.tensor(whose).repeat_interleave(torch.tensor(lengths)).view(2, 15)
    places = torch.cat([torch.arange(length) for length in lengths]).view(2, 15)
    packed = IDS[:2]
    with model.base_model.mixed(["a", "b", "c"], weights, of_tokens=numbers):
        found = logits(model, packed, position_ids=places, use_cache=False).flatten(0, 1)
    for own, text, said in zip(whose, packed.flatten().split(lengths), found.split(lengths), strict=True):
        with model.base_model.mixed(["a", "b", "c"], weights[[own]]):
            torch.testing.assert_close(said, logits(model, text[None])[0], atol=1e-4, rtol=1e-4)


def test_a_token_s_mixture_is_that_of_its_row_where_all_of_a_row_have_one(model: PeftModel) -> None:
    weights = torch.tensor([[0.5, 0.25], [0.0, 0.0], [1.0, -0.5], [0.0, 1.0]])
    with model.base_model.mixed(["a", "b"], weights):
        wanted = logits(model)
    with model.base_model.mixed(["a", "b"], weights, of_tokens=torch.arange(4)[:, None].expand(4, 15)):
        assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        (torch.zeros(4, 15), "whole numbers"),
        (torch.full((4, 15), 2), "of one of 2 mixtures"),
        (torch.full((4, 15), -1), "of one of 2 mixtures"),
        (torch.zeros(60, dtype=torch.long), "whole numbers"),
        (torch.zeros(4, 14, dtype=torch.long), r"\[4, 14\], but the base reads tokens \[4, 15\]"),
    ],
)
def test_numbers_of_tokens_that_are_none_are_refused(model: PeftModel, numbers: Tensor, line: str) -> None:
    with (
        pytest.raises(UserError, match=line),
        model.base_model.mixed(["a"], torch.tensor([[1.0], [0.5]]), of_tokens=numbers),
    ):
        logits(model)
