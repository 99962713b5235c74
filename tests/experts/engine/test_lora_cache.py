"""A mixture's LoRA answers as the mixture does, has one name, and makes room for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from experts import Expert, ExpertLibrary, Mixture
from experts.engine import mixed
from experts.engine.lora_cache import LoraCache, mixture_name, read_mixture_name
from experts.exchange.lora import Lora
from experts.exchange.lora_folder import read_lora
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint

IDS = torch.arange(3, 43).view(2, 20)
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def library(tiny_model: Any, tmp_path: Path) -> ExpertLibrary:
    """`a` and `b` limit the MLP to other ranks, `c` adapts the attention."""
    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))
    for seed, (name, where, rank) in enumerate([("a", ".mlp.", 4), ("b", ".mlp.", 8), ("c", ".self_attn.q", 4)]):
        generator = torch.Generator().manual_seed(seed)
        matrices = [matrix for matrix, _ in tiny_model.named_modules() if where in matrix]
        z = {matrix: 1 + torch.randn(rank, generator=generator) for matrix in matrices if "_proj" in matrix}
        Expert(z, "tiny", library.fingerprint).write(tmp_path / name)
        library.add(tmp_path / name)
    return library


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


MIXTURES = {
    "one": Mixture.of({"a": 1.0}),
    "other ranks": Mixture.of({"a": 0.7, "b": 0.3}),
    "other matrices": Mixture.of({"c": 0.5, "b": -0.25}),
    "per matrix": Mixture(("a", "b"), torch.tensor([[0.5, 0.5]]), {UP: torch.tensor([[1.0, 0.0]])}),
}


@pytest.mark.parametrize("which", MIXTURES)
def test_the_lora_of_a_mixture_answers_as_the_mixture_does(library: ExpertLibrary, tiny_model: Any, which: str) -> None:
    mixture = MIXTURES[which]
    of_base = logits(tiny_model)
    model: Any = library.load(tiny_model)
    with mixed(model, mixture.expand(2)):
        wanted = logits(model)
    model.unload()
    with LoraCache(library, tiny_model).hold(mixture) as (adapter,):
        assert adapter is not None
        lora = PeftModel.from_pretrained(tiny_model, str(adapter.path))
        torch.testing.assert_close(logits(lora), wanted, atol=1e-4, rtol=0)
    assert (wanted - of_base).abs().max() > 0.1


@pytest.fixture
def lora(tiny_model: Any, library: ExpertLibrary, tmp_path: Path) -> str:
    """The name of a LoRA in the library, of rank 3, on a matrix that the experts adapt and on one that they do not."""
    matrices = (UP, "model.layers.0.self_attn.v_proj")
    generator = torch.Generator().manual_seed(3)
    shapes = {matrix: tiny_model.get_submodule(matrix).weight.shape for matrix in matrices}
    a = {matrix: torch.randn(3, n, generator=generator) for matrix, (_, n) in shapes.items()}
    b = {matrix: torch.randn(m, 3, generator=generator) for matrix, (m, _) in shapes.items()}
    Lora(a, b, alpha=2, base="tiny").write(tmp_path / "lora")
    return library.add(tmp_path / "lora", "x")


@pytest.mark.parametrize(
    ("mixture", "rank"),
    [
        (Mixture.of({"x": 1.0}), 3),
        (Mixture.of({"b": 0.0, "x": 1.0}), 3),
        (Mixture.of({"a": 0.5, "x": -0.25, "c": 1.0}), 7),
        (Mixture(("b", "x"), torch.tensor([[0.5, 0.5]]), {UP: torch.tensor([[1.0, 0.0]])}), 8),
    ],
    ids=str,
)
def test_loras_stand_beside_experts_in_the_lora_of_a_mixture(
    library: ExpertLibrary, lora: str, tiny_model: Any, mixture: Mixture, rank: int
) -> None:
    of_base = logits(tiny_model)
    loras = LoraCache(library, tiny_model)
    assert "model.layers.0.self_attn.v_proj" in loras.matrices
    model: Any = library.load(tiny_model)
    with mixed(model, mixture.expand(2)):
        wanted = logits(model)
    model.unload()
    with loras.hold(mixture) as (adapter,):
        assert adapter is not None
        assert max(read_lora(adapter.path).ranks.values()) == rank
        served = PeftModel.from_pretrained(tiny_model, str(adapter.path))
        torch.testing.assert_close(logits(served), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - of_base).abs().max() > 0.1


def test_a_mixture_whose_ranks_have_no_room_is_refused(library: ExpertLibrary, lora: str, tiny_model: Any) -> None:
    loras = LoraCache(library, tiny_model, room=8)
    with (
        loras.hold(Mixture.of({"b": 1.0})),
        loras.hold(Mixture.of({"x": 1.0})),
        loras.hold(Mixture.of({"a": 1, "x": 1})),
    ):
        pass
    message = (
        r"mix:b=1,x=1 is a LoRA of rank 11, but there is room only for 8: start vLLM with a max_lora_rank of 11 or more"
    )
    with pytest.raises(UserError, match=message), loras.hold(Mixture.of({"b": 1, "x": 1})):
        pass
    adapter = library.lora("x")
    loras.add("again", adapter)
    with loras.hold(Mixture.of({"again": 0.5, "x": 0.5})):
        pass
    loras.remove("again")
    with pytest.raises(UserError, match="unknown expert 'again'"), loras.hold(Mixture.of({"again": 1.0})):
        pass
    wide = {UP: torch.zeros(9, 32)}, {UP: torch.zeros(48, 9)}
    with pytest.raises(UserError, match="has rank 9, but there is room only for 8 here"):
        loras.add("wide", Lora(*wide))
    with pytest.raises(UserError, match=r"nothing in the library .* does"):
        loras.add("elsewhere", Lora({"lm_head": torch.zeros(1, 32)}, {"lm_head": torch.zeros(259, 1)}))


def test_a_library_of_loras_alone_needs_no_decomposition(library: ExpertLibrary, lora: str, tiny_model: Any) -> None:
    for name in ("a", "b", "c"):
        library.remove(name)
    loras = LoraCache(library, tiny_model)
    assert {*loras.matrices} == {UP, "model.layers.0.self_attn.v_proj"}
    with loras.hold(Mixture.of({"x": 0.5}, 2)) as (first, second):
        assert first == second is not None


def test_a_mixture_has_one_name_and_the_base_none(library: ExpertLibrary) -> None:
    assert mixture_name(Mixture.of({"b": 0.3, "a": 0.7, "c": 0.0})) == "mix:a=0.7,b=0.3"
    assert mixture_name(Mixture.of({"a": 0.0})) == mixture_name(Mixture.of({})) == ""
    assert mixture_name(read_mixture_name("mix:b=.30,a=7e-1", library)) == "mix:a=0.7,b=0.3"
    assert mixture_name(read_mixture_name("a", library)) == "mix:a=1"
    thirds = Mixture.of({"a": 1 / 3, "b": -1e-7})
    assert torch.equal(read_mixture_name(mixture_name(thirds), library).weights, thirds.weights)
    names = {mixture_name(Mixture.of({"a": 0.5, "b": 0.5})), mixture_name(MIXTURES["per matrix"])}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mix:", "'mix:' is not a mixture; write mix:EXPERT=WEIGHT"),
        ("mix:a", "'mix:a' is not a mixture; write mix:EXPERT=WEIGHT"),
        ("mix:a=nan", "'mix:a=nan' is not a mixture"),
        ("mix:a=0.5,a=0.5", "names the expert 'a' twice"),
        ("mix:aa=0.5", "unknown expert 'aa'; did you mean 'a'?"),
        ("aa", "unknown expert 'aa'; did you mean 'a'?"),
        ("mix:a=1e99", "finite"),
    ],
)
def test_a_name_with_a_mistake_is_refused(library: ExpertLibrary, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_mixture_name(name, library)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loras_make_room_for_others_unless_they_are_held(library: ExpertLibrary, tiny_model: Any) -> None:
    loras = LoraCache(library, tiny_model, keep=2)
    mixtures = [Mixture.of({"a": 1 + number / 8}) for number in range(5)]
    with loras.hold(mixtures[0]) as (first,):
        assert first is not None
        for mixture in mixtures[1:]:
            with loras.hold(mixture):
                assert loras.holds(mixture)
                assert len(list(first.path.parent.iterdir())) <= 2
        assert (first.path / "adapter_model.safetensors").is_file()
    with loras.hold(mixtures[0]) as (again,):
        assert again == first  # still there, the most recently held beside one other
    for mixture in mixtures[1:3]:
        with loras.hold(mixture):
            pass
    assert not first.path.exists()
    with loras.hold(mixtures[0]) as (again,):
        assert again is not None
        assert again.path == first.path  # where a server that remembers it looks
        assert again.number > first.number
        assert again.path.is_dir()
    together = Mixture(("a",), torch.tensor([[1.0], [0.0], [2.0], [3.0], [1.0]]))
    with loras.hold(together) as rows:
        assert rows[1] is None
        assert rows[0] == rows[4]
        assert all(row.path.is_dir() for row in rows if row)  # more than the two kept, while they are held
    assert len(list(first.path.parent.iterdir())) == 2


def test_what_the_library_or_the_base_lacks_is_refused(
    library: ExpertLibrary, tiny_model: Any, tiny_folder: Path
) -> None:
    loras = LoraCache(library, tiny_model)
    with pytest.raises(UserError, match="unknown expert 'd'"), loras.hold(Mixture.of({"d": 1.0})):
        pass
    assert not loras.holds(Mixture.of({"d": 1.0}))
    with torch.no_grad():
        tiny_model.get_submodule(UP).weight.mul_(2)
    with pytest.raises(UserError, match="fingerprint"):
        LoraCache(library, tiny_model)
