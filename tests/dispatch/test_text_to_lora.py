"""Dispatch to written experts: mixtures of the right form, experts that come and go, and the answers they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch.base import Fixed
from dispatch.text_to_lora import T2LDispatcher, by_domain, by_prompt, told, with_room
from experts.engine.native import generate
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


def test_every_prompt_gets_the_expert_of_its_description(writer: TextToAdapter, tiny_model: Any) -> None:
    dispatcher = T2LDispatcher(writer, with_room(tiny_model, writer))
    mixture = dispatcher(PROMPTS)
    assert mixture.weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert set(mixture.names) <= set(dispatcher.model.peft_config)
    for row, prompt in enumerate(PROMPTS):  # whatever else is in the batch
        assert dispatcher([prompt])[0] == mixture[row]
    assert dispatcher([" ", "Add."]).weights.tolist() == [[0], [1]]  # nothing to describe: the base


def test_answers_are_those_of_the_written_adapters(writer: TextToAdapter, tiny_model: Any, tiny_tokenizer: Any) -> None:
    written = {prompt: writer.write([prompt]) for prompt in PROMPTS}
    factors = base_factors(tiny_model, writer.network)
    base = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    wanted = []
    for prompt in PROMPTS:
        with adapted_rows(tiny_model, written[prompt], factors=factors):
            wanted += generate(tiny_model, tiny_tokenizer, [prompt], max_new_tokens=8)
    model = with_room(tiny_model, writer)
    found = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8, mixture=T2LDispatcher(writer, model)(PROMPTS))
    assert found == wanted != base


def test_the_model_keeps_a_bounded_number_of_experts(writer: TextToAdapter, tiny_model: Any) -> None:
    model = with_room(tiny_model, writer)
    dispatcher = T2LDispatcher(writer, model, kept=2)
    carried = lambda: {name for name in model.peft_config if name != "t2l-identity"}  # noqa: E731
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
    layers = [module for module in model.modules() if hasattr(module, "svf_z")]
    assert all(set(layer.svf_z) - {"t2l-identity"} == carried() for layer in layers)  # type: ignore[arg-type]
    assert second not in carried()


def test_the_model_carries_what_the_network_wrote(writer: TextToAdapter, tiny_model: Any) -> None:
    model = with_room(tiny_model, writer)
    ids = torch.arange(3, 20)[None]
    base = tiny_model(ids).logits
    (name,) = T2LDispatcher(writer, model)(["Add."]).names
    assert torch.equal(model(ids).logits, base)  # carried, not active
    (expert,) = writer.generate(["Add."])
    z = model.get_base_model().get_submodule("model.layers.1.mlp.up_proj").svf_z[name]  # type: ignore[union-attr]
    assert torch.equal(z, expert.z["model.layers.1.mlp.up_proj"])  # type: ignore[union-attr, index]
    assert not z.requires_grad
    assert isinstance(model.base_model, SVFModel)


def test_descriptions_may_be_the_user_s_or_the_domain_s(writer: TextToAdapter, tiny_model: Any) -> None:
    model = with_room(tiny_model, writer)
    same = T2LDispatcher(writer, model, told("Sums of two numbers."))(PROMPTS)
    assert same.weights.tolist() == [[1]] * 3

    def chooser(prompts: Any) -> Mixture:
        sums = torch.tensor([float("Add" in prompt) for prompt in prompts])
        return Mixture(("sums", "letters"), torch.stack([0.6 * sums, 0.2 * sums], 1))

    describe = by_domain(chooser, {"sums": "Sums of two numbers.", "letters": "Letters."})
    domain = T2LDispatcher(writer, model, describe)(PROMPTS)
    assert domain.names == same.names
    assert domain.weights.tolist() == [[1], [0], [1]]
    turns = [("user", "first"), ("assistant", "x"), ("user", "last")]
    assert by_prompt([[{"role": role, "content": content} for role, content in turns]]) == ["last"]


def test_written_experts_mix_with_trained_ones(writer: TextToAdapter, tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = with_room(tiny_model, writer)
    (trained,) = T2LDispatcher(writer, model, told("Something trained."))(["x"]).names
    other = Fixed(Mixture.of({trained: 0.8}))
    mixture = T2LDispatcher(writer, model, lambda prompts: ["Add.", None], beside=other, share=0.25)(["a", "b"])
    assert mixture.names[1] == trained
    torch.testing.assert_close(mixture.weights, torch.tensor([[0.25, 0.6], [0.0, 0.8]]))
    assert (mixture.weights.sum(1) <= 1).all()
    nobody = T2LDispatcher(writer, model, told("Add."), beside=Fixed(Mixture.of({})), share=0.25)(["a"])
    assert nobody.weights.tolist() == [[1.0]]
    assert len(generate(model, tiny_tokenizer, ["a", "b"], max_new_tokens=2, mixture=mixture)) == 2


def test_a_folder_and_a_base_are_enough(
    writer: TextToAdapter, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    matrices = writer.network.spec.matrices
    encoder = LastTokenEncoder(tiny_model, tiny_tokenizer)
    written = TextToAdapter.untrained(SvfOutput(rank=8), matrices, encoder, fingerprint=fingerprint(tiny_model))
    written.save_pretrained(tmp_path / "network")
    dispatcher = T2LDispatcher.from_pretrained(tmp_path / "network", tiny_model, tiny_tokenizer, kept=3)
    assert dispatcher(PROMPTS).weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    again = T2LDispatcher.from_pretrained(tmp_path / "network", dispatcher.model, tiny_tokenizer)
    assert again.model is dispatcher.model  # it has room already
    assert again(PROMPTS).names == dispatcher(PROMPTS).names


def test_what_cannot_be_dispatched_is_refused(writer: TextToAdapter, tiny_model: Any) -> None:
    model = with_room(tiny_model, writer)
    matrices = writer.network.spec.matrices
    lora = TextToAdapter.untrained(LoraOutput(), matrices, LengthEncoder())
    with pytest.raises(UserError, match="writes LoRAs"):
        T2LDispatcher(lora, model)
    other = TextToAdapter.untrained(SvfOutput(rank=8), matrices, LengthEncoder(), fingerprint="0123")
    with pytest.raises(UserError, match="fingerprint 0123, this one has"):
        T2LDispatcher(other, model)
    with pytest.raises(UserError, match="share"):
        T2LDispatcher(writer, model, share=2.0)
