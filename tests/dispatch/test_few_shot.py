"""The few-shot search finds the mixture that its examples were answered by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from dispatch.few_shot import Search, matrix_groups, mixture_of, rank_candidates, search
from experts.engine import NativeEngine
from experts.exchange.lora import Lora
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError

PROMPTS = ["one", "two and a bit", "three", "four!", "five", "six of them", "7", "eight"]
NAMES = ["a", "b"]


@pytest.fixture
def model(library: ExpertLibrary, tiny_model: Any) -> Any:
    return library.load(tiny_model)


def same(texts: list[str], *, answer: list[str], **_: Any) -> list[float]:
    return [float(text == right) for text, right in zip(texts, answer, strict=True)]


def rows_of(model: PeftModel, tokenizer: Any, weights: dict[str, float]) -> list[dict[str, Any]]:
    """Examples whose right answers are those that a mixture gives."""
    mixture = Mixture.of(weights, len(PROMPTS))
    texts = NativeEngine(model, tokenizer).generate(PROMPTS, max_new_tokens=6, mixture=mixture)
    return [
        {"prompt": [{"role": "user", "content": prompt}], "answer": text}
        for prompt, text in zip(PROMPTS, texts, strict=True)
        if text
    ]


@pytest.mark.parametrize("wanted", [{"a": 1.0}, {"b": 1.0}, {}])
def test_an_expert_that_has_all_the_answers_is_found(model: Any, tiny_tokenizer: Any, wanted: dict[str, float]) -> None:
    rows = rows_of(model, tiny_tokenizer, wanted)
    options = Search(population=4, generations=1, max_new_tokens=6)
    found = search(NativeEngine(model, tiny_tokenizer), NAMES, rows, same, options)
    assert found.reward == 1
    weights = Mixture.of({"a": 0.0, "b": 0.0} | wanted).weights
    torch.testing.assert_close(found.mixture.weights, weights)


@pytest.mark.parametrize("per", ["model", "matrix"])
def test_a_lora_that_has_all_the_answers_is_found(
    library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any, per: Any
) -> None:
    engine = NativeEngine(library.load(tiny_model), tiny_tokenizer)
    generator = torch.Generator().manual_seed(0)
    matrices = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
    a, b = ({m: torch.randn(*shape, generator=generator) for m in matrices} for shape in ((2, 32), (48, 2)))
    engine.carry("x", Lora(a, b))
    rows = rows_of(engine.model, tiny_tokenizer, {"x": 1.0})
    options = Search(per=per, population=4, generations=1, max_new_tokens=6)
    found = search(engine, [*NAMES, "x"], rows, same, options)
    assert (found.reward, found.mixture[0]) == (1, {"x": 1.0})


@pytest.mark.parametrize("per", ["model", "layer", "matrix"])
def test_the_search_climbs_and_repeats_itself(model: Any, tiny_tokenizer: Any, per: Any) -> None:
    rows = rows_of(model, tiny_tokenizer, {"a": 0.5, "b": 0.5})
    heard: list[tuple[float, float]] = []
    options = Search(per=per, population=8, generations=4, max_new_tokens=6, std=0.3)
    found = search(
        NativeEngine(model, tiny_tokenizer), NAMES, rows, same, options, lambda *best: heard.append(best[1:])
    )
    assert len(heard) == 4
    assert max(heard) > heard[0]
    again = search(NativeEngine(model, tiny_tokenizer), NAMES, rows, same, options)
    assert torch.equal(found.mixture.weights, again.mixture.weights)
    assert len(found.mixture.per_matrix) == (0 if per == "model" else 14)


def test_a_population_scores_as_its_candidates_do_alone(model: Any, tiny_tokenizer: Any) -> None:
    rows = rows_of(model, tiny_tokenizer, {"a": 1.0})[:4]
    groups = matrix_groups(model, "layer")
    assert sorted(set(groups.values())) == [0, 1]
    alphas = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    candidates = mixture_of(NAMES, alphas, groups)
    engine = NativeEngine(model, tiny_tokenizer)
    best, scores = rank_candidates(engine, candidates, rows, same, Search(max_new_tokens=6), places=3)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    for number, candidate in zip(best, scores, strict=True):
        own = {matrix: alphas[number][None, :, group].expand(4, -1) for matrix, group in groups.items()}
        mixture = Mixture(("a", "b"), torch.zeros(4, 2), own)
        prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
        texts = NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=6, mixture=mixture)
        wanted = [
            sum(same(texts, answer=answers)) / 4,
            NativeEngine(model, tiny_tokenizer).loglikelihood(prompts, answers, mixture=mixture).mean().item(),
        ]
        assert candidate.tolist() == pytest.approx(wanted, rel=1e-3)


def test_ties_are_broken_by_the_likelihood_of_the_answers(model: Any, tiny_tokenizer: Any) -> None:
    rows = rows_of(model, tiny_tokenizer, {"b": 1.0})

    def never(texts: list[str], **_: Any) -> list[float]:
        return [0.0] * len(texts)

    options = Search(population=4, generations=1, max_new_tokens=2)
    found = search(NativeEngine(model, tiny_tokenizer), NAMES, rows, never, options)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    choosing = [rows[i] for i in order[1::2]]
    alone = torch.tensor([[0.0, 0], [1, 0], [0, 1]])[:, :, None]
    candidates = mixture_of(NAMES, alone, matrix_groups(model, "model"))
    _, scores = rank_candidates(NativeEngine(model, tiny_tokenizer), candidates, choosing, never, options, places=1)
    assert found.reward == 0
    assert found.loglikelihood >= scores[0, 1].item() - 1e-3


def test_mistakes_are_refused(model: Any, tiny_tokenizer: Any) -> None:
    row = {"prompt": "a", "answer": "b"}
    with pytest.raises(UserError, match="at least 2 examples"):
        search(NativeEngine(model, tiny_tokenizer), NAMES, [row], same, Search())
    with pytest.raises(UserError, match="nothing to mix"):
        search(NativeEngine(model, tiny_tokenizer), [], [row, row], same, Search())
    with pytest.raises(UserError, match="population"):
        Search(population=1)


@pytest.mark.parametrize("place", range(4))  # half of the examples are looked at after the search
@pytest.mark.parametrize("long", ["prompt", "answer"])
def test_an_example_that_is_too_long_is_found_before_the_search(
    model: Any, tiny_tokenizer: Any, long: str, place: int
) -> None:
    heard: list[float] = []
    rows = [{"prompt": "a", "answer": "b"} for _ in range(4)]
    rows[place][long] = "a" * 600
    with pytest.raises(UserError, match="exceed the model's context of 512"):
        search(NativeEngine(model, tiny_tokenizer), NAMES, rows, same, Search(), lambda *said: heard.extend(said))
    assert heard == []
