"""The network: the paper's sizes, the identity at the start, and adapters that depend on the description."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MistralConfig

from experts.outside.errors import UserError
from experts.text_to_lora.network import AdapterNetwork, LoraOutput, LowRank, NetworkConfig, SvfOutput
from experts.text_to_lora.rows import adapted_rows
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter

OUTPUTS = [
    LoraOutput(size="L"),
    LoraOutput(size="M"),
    LoraOutput(size="S"),
    LoraOutput(target_modules="all-linear", rank=3),
    SvfOutput(),
    SvfOutput(rank=4),
    SvfOutput(rank=4, own_heads=True),
]


def mistral_7b() -> MistralConfig:
    return MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


@pytest.mark.parametrize(("size", "published"), [("L", 55e6), ("M", 34e6), ("S", 5e6)])
def test_sizes_for_mistral_7b_are_the_published_ones(size: Any, published: float) -> None:
    matrices = read_matrices(mistral_7b(), ["q_proj", "v_proj"])
    assert len(matrices) == 64
    config = NetworkConfig(LoraOutput(size=size), tuple(matrices), "gte", 1024)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AdapterNetwork(config).parameters())
    assert parameters == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_an_untrained_network_writes_the_identity(output: Any, make_writer: Any) -> None:
    written = make_writer(output).write(["Add two numbers.", "Translate into French."])
    for adapter in written.values():
        if isinstance(adapter, LowRank):
            assert adapter.a.abs().max() > 0  # else nothing could ever be learned
            assert not adapter.b.any()
        else:
            assert (adapter == 1).all()


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_gradients_reach_the_heads_at_once_and_the_rest_after_one_step(
    output: Any, make_writer: Any, encoder: Any
) -> None:
    network = make_writer(output).network
    tasks = encoder(["Add two numbers."])

    def gradients() -> dict[str, float]:
        network.zero_grad()
        written = network.unpack(network(tasks))
        products = [w.b @ w.a if isinstance(w, LowRank) else w for w in written.values()]
        sum((p - torch.linspace(0, 1, p.numel()).view(p.shape)).square().sum() for p in products).backward()
        return {name: p.grad.abs().sum().item() for name, p in network.named_parameters()}

    first = gradients()
    assert all(first[name] > 0 for name in first if name.startswith("heads"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-3 * parameter.grad
    assert all(value > 0 for value in gradients().values())


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_each_row_is_what_its_description_gives_alone(output: Any, make_writer: Any) -> None:
    writer = make_writer(output, trained=True)
    texts = ["Add two numbers.", "Translate into French.", "Is this sentence rude?"]
    together = writer.network.numbers(writer.write(texts))
    for row, text in enumerate(texts):
        for kind, numbers in enumerate(writer.network.numbers(writer.write([text]))):
            torch.testing.assert_close(numbers[0], together[kind][row])
    assert not torch.allclose(together[0][0], together[0][1])


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_layers_modules_and_ranks_differ(output: Any, make_writer: Any) -> None:
    written = make_writer(output, trained=True).write(["Add two numbers."])
    q = [written[f"model.layers.{layer}.self_attn.q_proj"] for layer in (0, 1)]
    if isinstance(q[0], LowRank):
        assert not torch.allclose(q[0].b, q[1].b)
        assert torch.linalg.matrix_rank((q[0].b @ q[0].a)[0]) == output.rank
    else:
        assert not torch.allclose(q[0], q[1])
        o = written["model.layers.0.self_attn.o_proj"]  # shares its head with q, which has the same shape
        assert not torch.allclose(q[0], o)


def test_numbers_is_the_inverse_of_adapters(make_writer: Any) -> None:
    for output in OUTPUTS:
        network = make_writer(output).network
        given = [torch.randn(2, *numbers.shape[1:]) for numbers in network(torch.randn(1, 27))]
        again = network.numbers(network.adapters(given))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(given, again, strict=True))


def test_one_layer_may_have_other_shapes_than_the_next(encoder: Any) -> None:
    from experts.text_to_lora.shapes import Matrix

    matrices = [Matrix("layers.0.up", 6, 4), Matrix("layers.1.up", 8, 4)]
    for size in "LMS":
        written = TextToAdapter.untrained(LoraOutput(rank=2, size=size), matrices, encoder).write(["Add."])  # type: ignore[arg-type]
        assert [written[m.name].b.shape for m in matrices] == [(1, 6, 2), (1, 8, 2)]  # type: ignore[union-attr]
    z = TextToAdapter.untrained(SvfOutput(), matrices, encoder).write(["Add."])
    assert [z[m.name].shape for m in matrices] == [(1, 4), (1, 4)]  # type: ignore[union-attr]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="rank"):
        LoraOutput(rank=0)
    with pytest.raises(UserError, match="rank"):
        SvfOutput(rank=0)
    with pytest.raises(UserError, match="multiple of 4"):
        NetworkConfig(SvfOutput(), (), "x", 4, latent_size=10)


def test_an_untrained_network_leaves_the_base_as_it_is(make_writer: Any, tiny_model: Any) -> None:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted = tiny_model(ids).logits
        for size in "LMS":
            output = LoraOutput(size=size)  # type: ignore[arg-type]
            with adapted_rows(tiny_model, make_writer(output).write(["Add."]), scaling=output.scaling):
                assert torch.equal(tiny_model(ids).logits, wanted)
