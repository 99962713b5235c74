"""Dispatch to written experts: mixtures of the right form, experts that come and go, and the answers they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch.base import Fixed
from dispatch.text_to_lora import T2LDispatcher, by_description, by_domain, by_prompt
from experts.engine import NativeEngine
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFModel
from experts.svf.fingerprint import fingerprint
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.rows import adapted_rows, base_factors
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter

PROMPTS = ["Add 2 and 3.", "Say hello in French.", "Add 2 and 3."]


class LengthEncoder:
    """An encoder without a model: sines of the text's length."""

    name = "length"
    size = 8

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        return torch.tensor([[(len(text) * k) for k in range(1, 9)] for text in descriptions]).sin()


@pytest.fixture
def writer(tiny_model: Any) -> TextToAdapter:
    torch.manual_seed(0)
    output = SvfOutput(rank=8)
    matrices = read_matrices(tiny_model.config, output.target_modules)
    writer = TextToAdapter.untrained(output, matrices, LengthEncoder(), fingerprint=fingerprint(tiny_model))
    for head in writer.network.heads:
        head.linear.weight.data.normal_(std=1.0)  # type: ignore[union-attr, operator]
    return writer


@pytest.fixture
def engine(tiny_model: Any, tiny_tokenizer: Any) -> NativeEngine:
    return NativeEngine(tiny_model, tiny_tokenizer)


def test_every_prompt_gets_the_expert_of_its_description(writer: TextToAdapter, engine: NativeEngine) -> None:
    dispatcher = T2LDispatcher(writer, engine)
    mixture = dispatcher(PROMPTS)
    assert mixture.weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert set(mixture.names) <= set(engine.experts)
    for row, prompt in enumerate(PROMPTS):  # whatever else is in the batch
        assert dispatcher([prompt])[0] == mixture[row]
    assert dispatcher([" ", "Add."]).weights.tolist() == [[0], [1]]  # nothing to describe: the base


def test_answers_are_those_of_the_written_adapters(
    writer: TextToAdapter, tiny_model: Any, engine: NativeEngine
) -> None:
    written = {prompt: writer.write([prompt]) for prompt in PROMPTS}
    factors = base_factors(tiny_model, writer.network)
    base = engine.generate(PROMPTS, max_new_tokens=8)
    wanted = []
    for prompt in PROMPTS:
        with adapted_rows(tiny_model, written[prompt], factors=factors):
            wanted += engine.generate([prompt], max_new_tokens=8)
    found = engine.generate(PROMPTS, max_new_tokens=8, mixture=T2LDispatcher(writer, engine)(PROMPTS))
    assert found == wanted != base


def test_the_engine_keeps_a_bounded_number_of_experts(writer: TextToAdapter, engine: NativeEngine) -> None:
    dispatcher = T2LDispatcher(writer, engine, kept=2)
    carried = lambda: set(engine.experts)  # noqa: E731
    (first,) = dispatcher(["one"]).names
    (second,) = dispatcher(["two"]).names
    dispatcher(["one"])
    (third,) = dispatcher(["three"]).names
    assert carried() == {first, third}  # "two" was used least recently
    many = dispatcher([f"prompt {'x' * i}" for i in range(4)])
    assert carried() == set(many.names)  # a call keeps what it needs
    assert len(carried()) == 4
    dispatcher(["one"])
    assert carried() > set(many.names)  # and for as long as its mixture may be asked for
    del many
    dispatcher(["one"])
    assert len(carried()) == 2
    layers = [module for module in engine.model.modules() if hasattr(module, "svf_z")]
    assert layers
    assert all(set(layer.svf_z) - {"base"} == carried() for layer in layers)  # type: ignore[arg-type]
    assert second not in carried()


def test_the_engine_carries_what_the_network_wrote(writer: TextToAdapter, engine: NativeEngine) -> None:
    ids = torch.arange(3, 20)[None]
    plain: Any = engine.model
    base = plain(ids).logits
    (name,) = T2LDispatcher(writer, engine)(["Add."]).names
    model: Any = engine.model
    assert torch.equal(model(ids).logits, base)  # carried, not active
    assert torch.equal(plain(ids).logits, base)  # nor seen by a call that began before
    (expert,) = writer.generate(["Add."])
    z = model.get_base_model().get_submodule("model.layers.1.mlp.up_proj").svf_z[name]  # type: ignore[union-attr]
    assert torch.equal(z, expert.z["model.layers.1.mlp.up_proj"])  # type: ignore[union-attr, index]
    assert not z.requires_grad
    assert isinstance(model.base_model, SVFModel)


def test_descriptions_may_be_the_user_s_or_the_domain_s(writer: TextToAdapter, engine: NativeEngine) -> None:
    same = T2LDispatcher(writer, engine, by_description("Sums of two numbers."))(PROMPTS)
    assert same.weights.tolist() == [[1]] * 3

    def chooser(prompts: Any) -> Mixture:
        sums = torch.tensor([float("Add" in prompt) for prompt in prompts])
        return Mixture(("sums", "letters"), torch.stack([0.6 * sums, 0.2 * sums], 1))

    describe = by_domain(chooser, {"sums": "Sums of two numbers.", "letters": "Letters."})
    domain = T2LDispatcher(writer, engine, describe)(PROMPTS)
    assert domain.names == same.names
    assert domain.weights.tolist() == [[1], [0], [1]]
    turns = [("user", "first"), ("assistant", "x"), ("user", "last")]
    assert by_prompt([[{"role": role, "content": content} for role, content in turns]]) == ["last"]


def test_written_experts_mix_with_trained_ones(writer: TextToAdapter, engine: NativeEngine) -> None:
    (trained,) = T2LDispatcher(writer, engine, by_description("Something trained."))(["x"]).names
    other = Fixed(Mixture.of({trained: 0.8}))
    mixture = T2LDispatcher(writer, engine, lambda prompts: ["Add.", None], beside=other, share=0.25)(["a", "b"])
    assert mixture.names[1] == trained
    torch.testing.assert_close(mixture.weights, torch.tensor([[0.25, 0.6], [0.0, 0.8]]))
    assert (mixture.weights.sum(1) <= 1).all()
    nobody = T2LDispatcher(writer, engine, by_description("Add."), beside=Fixed(Mixture.of({})), share=0.25)(["a"])
    assert nobody.weights.tolist() == [[1.0]]
    assert len(engine.generate(["a", "b"], max_new_tokens=2, mixture=mixture)) == 2


def test_written_loras_are_dispatched_to_as_written_experts_are(
    writer: TextToAdapter, engine: NativeEngine, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    loras = TextToAdapter.untrained(LoraOutput(rank=2), writer.network.spec.matrices, LengthEncoder())
    for head in loras.network.heads:
        head.linear.weight.data.normal_(std=1.0)  # type: ignore[union-attr, operator]
    wanted = []
    for prompt in PROMPTS:
        (lora,) = loras.generate([prompt])
        attached = lora.attach(tiny_model)
        wanted += NativeEngine(attached, tiny_tokenizer).generate([prompt], max_new_tokens=8)
        attached.unload()
    beside = T2LDispatcher(writer, engine)
    dispatcher = T2LDispatcher(loras, engine, kept=2)
    assert engine.generate(PROMPTS, max_new_tokens=8, mixture=dispatcher(PROMPTS)) == wanted
    both = T2LDispatcher(loras, engine, beside=beside, share=0.5, kept=2)(PROMPTS[:2])
    assert both.weights.sum(1).tolist() == [1, 1]
    assert engine.generate(PROMPTS[:2], max_new_tokens=8, mixture=both) != wanted[:2]
    held = dispatcher(["one", "two", "three"])
    dispatcher(["one"])
    assert {*held.names} <= {*engine.experts}


@pytest.fixture
def network(writer: TextToAdapter, engine: NativeEngine, tmp_path: Path) -> Path:
    """A folder with a network that reads with the base."""
    encoder = LastTokenEncoder(engine.model, engine.tokenizer)  # type: ignore[arg-type]
    matrices = writer.network.spec.matrices
    written = TextToAdapter.untrained(SvfOutput(rank=8), matrices, encoder, fingerprint=engine.fingerprint)
    written.save_pretrained(tmp_path / "network")
    return tmp_path / "network"


def test_a_folder_and_an_engine_are_enough(network: Path, engine: NativeEngine) -> None:
    dispatcher = T2LDispatcher.from_pretrained(network, engine, kept=3)
    assert dispatcher(PROMPTS).weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    model = engine.model
    again = T2LDispatcher.from_pretrained(network, engine)
    assert again(PROMPTS).names == dispatcher(PROMPTS).names
    assert engine.model is model  # it has room already


def test_what_the_documentation_said_before_still_works(network: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    from dispatch.t2l import T2LDispatcher, told
    from selfadapt import SelfAdaptiveModel

    dispatcher = T2LDispatcher.from_pretrained(network, tiny_model, tiny_tokenizer, told("Name the capital."))
    model = SelfAdaptiveModel(dispatcher.model, tiny_tokenizer, dispatcher)
    answers = model.generate(PROMPTS, max_new_tokens=4)
    assert len({name for answer in answers for name in answer.mixture[0]}) == 1
    again = T2LDispatcher.from_pretrained(network, dispatcher.model, tiny_tokenizer)
    assert again.model is dispatcher.model  # it has room already
    assert again(["Name the capital."]).names == dispatcher(["x"]).names


def test_what_cannot_be_dispatched_is_refused(writer: TextToAdapter, engine: NativeEngine) -> None:
    matrices = writer.network.spec.matrices
    other = TextToAdapter.untrained(SvfOutput(rank=8), matrices, LengthEncoder(), fingerprint="0123")
    with pytest.raises(UserError, match="fingerprint 0123, but this one has"):
        T2LDispatcher(other, engine)
    with pytest.raises(UserError, match="share"):
        T2LDispatcher(writer, engine, share=2.0)
