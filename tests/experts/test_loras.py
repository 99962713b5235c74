"""LoRAs in a library: what they add is what PEFT makes of them, alone, in mixtures with experts, and in batches."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from experts import Expert, ExpertLibrary, Mixture
from experts.engine import NativeEngine, mixed
from experts.exchange.difference import Difference
from experts.exchange.lora_folder import read_lora
from experts.library import UnknownBase
from experts.outside.errors import UserError
from experts.svf import SVFLinear
from experts.svf.fingerprint import fingerprint
from tests.experts.svf.test_architectures import ARCHITECTURES, make_base

IDS = torch.arange(3, 63).view(4, 15)
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 8},
    "stabilised": {"target_modules": ["up_proj", "down_proj"], "r": 3, "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "r": 2,
        "rank_pattern": {"down_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 9, "down_proj": 1},
    },
    "head": {"target_modules": ["lm_head"], "r": 4},
}


@pytest.fixture
def save_lora(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a random LoRA of the tiny base as PEFT does, and returns its folder."""

    def save(name: str, base: str = str(tiny_folder), **config: Any) -> Path:
        model = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(**config))
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        return tmp_path / name

    return save


@pytest.fixture
def loras(save_lora: Callable[..., Path]) -> dict[str, Path]:
    return {name: save_lora(name, **config) for name, config in CONFIGS.items()}


@pytest.fixture
def both(library: ExpertLibrary, loras: dict[str, Path]) -> ExpertLibrary:
    """The library of two experts, and the LoRAs beside them."""
    for folder in loras.values():
        library.add(folder, description=f"About {folder.name} things.")
    return library


def logits(model: Any, mixture: Mixture | None = None) -> Tensor:
    with torch.no_grad():
        if mixture is None:
            return model(IDS).logits
        with mixed(model, mixture):
            return model(IDS).logits


def under(model: Any, **weights: float) -> Tensor:
    return logits(model, Mixture.of(weights, len(IDS)))


def in_peft(base: Any, folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval())


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_one_lora_is_what_peft_makes_of_it(both: ExpertLibrary, tiny_model: Any, loras: dict[str, Path]) -> None:
    base = logits(tiny_model)
    wanted = {name: in_peft(tiny_model, folder) for name, folder in loras.items()}
    model: Any = both.load(tiny_model)
    for name, of_peft in wanted.items():
        close(under(model, **{name: 1.0}), of_peft)
        assert (of_peft - base).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


def test_a_library_may_hold_nothing_but_loras(tiny_model: Any, loras: dict[str, Path], tmp_path: Path) -> None:
    base, wanted = logits(tiny_model), in_peft(tiny_model, loras["head"])
    library = ExpertLibrary.create(tmp_path / "only", str(tmp_path / "tiny"), fingerprint(tiny_model))
    library.add(loras["head"], "words")
    model: Any = library.load(tiny_model)
    assert torch.equal(logits(model), base)  # nothing is active
    close(under(model, words=1.0), wanted)
    assert {*NativeEngine(model, Any).experts} == {"words"}
    assert fingerprint(model) == library.fingerprint
    assert torch.equal(logits(model.unload()), base)


def test_rows_of_one_batch_are_what_they_are_alone(both: ExpertLibrary, tiny_model: Any) -> None:
    base = logits(tiny_model)
    model: Any = both.load(tiny_model)
    names = ("a", "b", "plain", "patterns", "head")
    weights = torch.tensor([[0, 0, 1.0, 0, 0], [0, 0, 0, 0, 0], [0.5, 0, 0.25, -0.5, 1], [0, 1, 0, 0, 0]])
    together = logits(model, Mixture(names, weights))
    for row in range(len(weights)):
        alone = logits(model, Mixture(names, weights[row : row + 1].expand(len(IDS), -1)))
        close(together[row], alone[row])
    assert torch.equal(together[1], base[1])
    assert torch.equal(under(model, plain=0.0, a=0.0), base)


def test_pefts_adapter_names_may_be_loras(both: ExpertLibrary, tiny_model: Any) -> None:
    base = logits(tiny_model)
    model: Any = both.load(tiny_model)
    wanted = [under(model, plain=1.0), base, under(model, b=1.0), under(model, head=1.0)]
    with torch.no_grad():
        found = model(IDS, adapter_names=["plain", "__base__", "b", "head"]).logits
    for row, of_one in enumerate(wanted):
        close(found[row], of_one[row])
    assert torch.equal(found[1], base[1])


def test_a_lora_may_name_domains(both: ExpertLibrary, loras: dict[str, Path], tiny_model: Any) -> None:
    assert both.add(loras["head"], classifier=True) == "classifier"
    both.remove("head")
    wanted = in_peft(tiny_model, loras["head"])
    model: Any = both.load(tiny_model)
    close(under(model, classifier=1.0), wanted)


def test_a_mixture_is_the_sum_of_the_differences(both: ExpertLibrary, tiny_model: Any) -> None:
    """W' x = W x + Σ_k α_k Δ_k x in every matrix, merged and row by row, with weights of the matrix's own or not."""
    model: Any = both.load(tiny_model)
    layers = {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, SVFLinear)}
    alpha = {"b": 0.5, "plain": -0.75, "stabilised": 2.0}
    own = "model.layers.1.mlp.up_proj"
    mixture = Mixture(tuple(alpha), torch.tensor([[*alpha.values()]]), {own: torch.tensor([[0.0, 1.0, 0.25]])})
    factors = {name: both.lora(name).factors for name in ("plain", "stabilised")}
    for matrix, layer in layers.items():
        weights = dict(zip(alpha, mixture.per_matrix.get(matrix, mixture.weights)[0].tolist(), strict=True))
        wanted = layer.pristine_weight.clone()
        if "b" in layer.svf_z:
            wanted += weights["b"] * layer.difference(layer.delta(["b"]).detach())
        for name, of in factors.items():
            if matrix in of:
                wanted += weights[name] * of[matrix].b @ of[matrix].a
        x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
        base = Mixture(mixture.names, torch.zeros(1, 3), {own: torch.zeros(1, 3)})
        for rows in ([mixture, mixture], [mixture, base]):  # one merged weight, and factors
            of_own = torch.cat([row.per_matrix[own] for row in rows])
            with (
                torch.no_grad(),
                mixed(model, Mixture(mixture.names, torch.cat([row.weights for row in rows]), {own: of_own})),
            ):
                close(layer(x)[0], torch.nn.functional.linear(x[0], wanted, layer.base_layer.bias))


def test_loras_come_and_go_while_others_answer(both: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> None:
    base = logits(tiny_model)
    engine = NativeEngine(tiny_model, tiny_tokenizer)
    engine.carry("one", both.lora("plain"))
    stream = engine.stream("hello", max_new_tokens=8, mixture=Mixture.of({"one": 1.0}))
    begun = next(stream)
    engine.carry("two", both.lora("patterns"))
    engine.carry("three", both.expert("b"))
    with pytest.raises(UserError, match="carries an expert 'two' already"):
        engine.carry("two", both.lora("head"))
    assert {*engine.experts} == {"one", "two", "three"}
    [wanted] = engine.generate(["hello"], max_new_tokens=8, mixture=Mixture.of({"one": 1.0}))
    engine.drop("one")
    assert "".join([begun, *stream]) == wanted
    with pytest.raises(UserError, match="unknown expert 'one'"):
        engine.generate(["hello"], max_new_tokens=1, mixture=Mixture.of({"one": 1.0}))
    assert torch.equal(logits(engine.model), base)


def test_answers_and_likelihoods_of_a_batch_are_those_of_its_rows(
    both: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    engine = NativeEngine(both.load(tiny_model), tiny_tokenizer)
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    mixture = Mixture(("a", "plain", "stabilised"), weights)
    prompts, ends = ["a", "a longer prompt", "x", "bb", "a"], ["yes", "n", "no", "yes", "yes"]
    answers = engine.generate(prompts, max_new_tokens=8, mixture=mixture)
    scores = engine.loglikelihood(prompts, ends, mixture=mixture)
    for row, prompt in enumerate(prompts):
        alone = mixture.rows([row])
        assert engine.generate([prompt], max_new_tokens=8, mixture=alone) == [answers[row]]
        assert "".join(engine.stream(prompt, max_new_tokens=8, mixture=alone)) == answers[row]
        close(engine.loglikelihood([prompt], [ends[row]], mixture=alone)[0], scores[row])
    assert len({*answers}) == 5


def test_what_is_more_than_a_lora_is_refused(
    library: ExpertLibrary, save_lora: Callable[..., Path], loras: dict[str, Path]
) -> None:
    folder = loras["plain"]
    document = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (
        ({"use_dora": True}, "it has use_dora=True"),
        ({"bias": "lora_only"}, "it has bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"trainable_token_indices": [1]}, "it has trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
        ({"lora_alpha": "much"}, "damaged"),
        ({"lora_alpha": float("nan")}, "damaged"),
        ({"peft_type": "ADALORA"}, "ADALORA adapter"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(document | change))
        with pytest.raises(UserError, match=message) as caught:
            library.add(folder)
        assert "\n" not in str(caught.value)
    (folder / "adapter_config.json").write_text(json.dumps(document))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="safe_serialization"):
        library.add(folder)
    with pytest.raises(UserError, match=r"more than a LoRA of linear layers: it has .*lora_embedding"):
        library.add(save_lora("embeds", target_modules=["embed_tokens"]))
    assert library.names == ["a", "b"]


def test_a_lora_of_another_base_is_refused(
    library: ExpertLibrary, save_lora: Callable[..., Path], tiny_model: Any
) -> None:
    elsewhere = save_lora("elsewhere", base="someone/else", **CONFIGS["plain"])
    with pytest.raises(UnknownBase, match=r"names the base 'someone/else', but the library .* name that base"):
        library.add(elsewhere)
    with pytest.raises(UnknownBase, match="does not say which base"):
        library.add(save_lora("nowhere", base="", **CONFIGS["plain"]))
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.add_(1)
    with pytest.raises(UserError, match="fingerprint"):
        library.add(elsewhere, base=other)
    assert library.add(elsewhere, base=tiny_model) == "elsewhere"  # whoever has the base knows better
    wide = read_lora(library.path("elsewhere"))
    for a in wide.a.values():
        a.resize_(len(a), 7)
    with pytest.raises(UserError, match=r"of shape \[\d+, 7\], but the base's has \[\d+, 32\]"):
        NativeEngine(tiny_model, Any).carry("wide", wide)


def test_a_lora_that_was_written_here_says_what_it_is_for(
    library: ExpertLibrary, loras: dict[str, Path], tmp_path: Path
) -> None:
    written = replace(read_lora(loras["plain"]), base=library.base, description="Capitals of countries.")
    written.write(tmp_path / "capitals")
    library.add(tmp_path / "capitals")
    assert library.description("capitals") == "Capitals of countries."
    for matrix, (a, b) in library.lora("capitals").factors.items():
        close(b @ a, written.factors[matrix].b @ written.factors[matrix].a)
    library.add(tmp_path / "capitals", "others", description="Something else.")
    assert library.description("others") == "Something else."


def test_a_trainers_checkpoint_leaves_its_states_behind(library: ExpertLibrary, loras: dict[str, Path]) -> None:
    for name in ("optimizer.pt", "training_args.bin", "tokenizer.json", "trainer_state.json"):
        (loras["plain"] / name).write_text("large")
    library.add(loras["plain"], description="Sums.")
    kept = {path.name for path in library.path("plain").iterdir()}
    assert kept == {"README.md", "adapter_config.json", "adapter_model.safetensors", "description.txt"}


def test_a_library_knows_its_loras(both: ExpertLibrary, loras: dict[str, Path]) -> None:
    assert both.names == ["a", "b", *loras]
    assert [name for name in both.names if both.is_lora(name)] == [*loras]
    assert both.descriptions() == {
        "a": "Sums of numbers.",
        "b": "Questions about animals.",
        **{name: f"About {name} things." for name in loras},
    }
    figures: Any = both.figures("patterns")
    assert figures.matrices["model.layers.0.mlp.down_proj"] == 6
    assert figures.parameters == sum(x.numel() for of in both.lora("patterns").factors.values() for x in of)
    with pytest.raises(UserError, match="LORA adapter, not an SVF expert"):
        both.expert("plain")
    again = ExpertLibrary.open(both.folder)
    again.remove("plain")
    assert "plain" not in ExpertLibrary.open(both.folder).names
    assert not (both.folder / "plain").exists()


def test_a_base_that_carries_a_lora_may_be_wrapped_again(
    both: ExpertLibrary, tiny_model: Any, loras: dict[str, Path]
) -> None:
    both.remove("a")
    both.remove("b")
    first: Any = both.load(tiny_model)
    wanted = under(first, plain=1.0, head=0.5)
    close(under(both.load(tiny_model), plain=1.0, head=0.5), wanted)
    with pytest.raises(UserError, match="carries 'plain' already"):
        first.base_model.add_lora("plain", both.lora("stabilised").factors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_carries_loras(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Rows, one shared mixture, and a merged export are as PEFT has it."""
    base = make_base(name)
    plain = base(IDS, use_cache=False).logits
    fused = name in ("Mixtral", "Qwen3Moe")  # where PEFT's all-linear adapts what is no linear layer
    matrices = ["q_proj", "o_proj"] if fused else "all-linear"
    config = LoraConfig(target_modules=matrices, r=3, lora_alpha=5, fan_in_fan_out=name == "GPT2")
    model = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    wanted = model(IDS, use_cache=False).logits
    assert (wanted - plain).abs().max() > 0.1
    model.save_pretrained(str(tmp_path / "lora"), save_embedding_layers=False)
    lora = read_lora(tmp_path / "lora")
    engine = NativeEngine(copy.deepcopy(base), tiny_tokenizer)
    engine.carry("x", lora)
    for weights in ([1.0] * 4, [1.0, 0.0, 1.0, 0.0]):
        with torch.no_grad(), mixed(engine.model, Mixture(("x",), torch.tensor(weights)[:, None])):
            found = engine.model(IDS, use_cache=False).logits
        close(found[0::2], wanted[0::2])
        if 0.0 in weights:
            assert torch.equal(found[1::2], plain[1::2])
    Difference(Expert({}), [lora.factors]).merge_into(base)
    close(base(IDS, use_cache=False).logits, wanted)
