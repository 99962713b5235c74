"""A population's answers are those of each of its mixtures alone, whatever is shared and drafted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from experts.engine import NativeEngine
from experts.engine.population import Population
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError

PROMPTS = ["one", "one and a bit", "one?", "one, two, three, four"]
MIXTURES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 0.4], [0.0, 1.0], [-0.5, 0.8]])


@pytest.fixture
def model(library: ExpertLibrary, tiny_model: Any) -> Any:
    return library.load(tiny_model)


def alone(model: Any, tokenizer: Any, weights: torch.Tensor, prompts: list[str]) -> list[str]:
    mixture = Mixture(("a", "b"), weights.expand(len(prompts), -1))
    return NativeEngine(model, tokenizer).generate(prompts, max_new_tokens=8, mixture=mixture)


def every_pair(prompts: list[str]) -> list[tuple[int, int]]:
    return [(row, example) for row in range(len(MIXTURES)) for example in range(len(prompts))]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], ["zero", *PROMPTS]])
@pytest.mark.parametrize(("batch_size", "penalty"), [(1, 1.0), (2, 1.0), (64, 1.0), (64, 1.7)])
def test_answers_and_likelihoods_are_those_of_each_alone(
    model: Any, tiny_tokenizer: Any, prompts: list[str], batch_size: int, penalty: float
) -> None:
    model.get_base_model().generation_config.repetition_penalty = penalty
    wanted = [alone(model, tiny_tokenizer, weights, prompts) for weights in MIXTURES]
    drafts = {
        "nobody's": ["7", "no", "seven of them", "-"],
        "one's own": [text or "." for text in wanted[2]],
        "one's beginning": [text[: 1 + row] or "." for row, text in enumerate(wanted[3])],
        "longer than an answer may be": [text + " and more" for text in wanted[1]],
    }
    for right in drafts.values():
        right = (right * 2)[: len(prompts)]
        population = Population(
            NativeEngine(model, tiny_tokenizer),
            prompts,
            right,
            Mixture(("a", "b"), MIXTURES),
            max_new_tokens=8,
            batch_size=batch_size,
        )
        texts, likelihoods = population.answer(every_pair(prompts))
        assert texts == [text for own in wanted for text in own]
        for weights, own in zip(MIXTURES, likelihoods.view(len(MIXTURES), -1), strict=True):
            mixture = Mixture(("a", "b"), weights.expand(len(prompts), -1))
            scores = NativeEngine(model, tiny_tokenizer).loglikelihood(prompts, right, mixture=mixture)
            torch.testing.assert_close(own, scores, atol=1e-3, rtol=1e-4)


def test_any_pairs_may_be_asked_in_any_order(model: Any, tiny_tokenizer: Any) -> None:
    right = ["7", "no", "seven of them", "-"]
    mixture = Mixture(("a", "b"), MIXTURES)
    population = Population(
        NativeEngine(model, tiny_tokenizer), PROMPTS, right, mixture, max_new_tokens=8, batch_size=64
    )
    every = every_pair(PROMPTS)
    texts, likelihoods = population.answer(every)
    for asked in ([(2, 3)], [(4, 1), (0, 0), (2, 3), (4, 0)], [(1, 0), (1, 2)], every[::-3]):
        some, of_some = population.answer(asked)
        places = [every.index(pair) for pair in asked]
        assert some == [texts[place] for place in places]
        torch.testing.assert_close(of_some, likelihoods[places], atol=1e-3, rtol=1e-4)


def test_an_answer_that_ends_stops(model: Any, tiny_tokenizer: Any) -> None:
    """The end token may come at once, inside the draft, or after it."""
    long = alone(model, tiny_tokenizer, MIXTURES[1], PROMPTS)
    letter = next(character for text in long for character in text[1:] if character.isascii() and character.isalnum())
    model.generation_config.eos_token_id = [2, *tiny_tokenizer.encode(letter, add_special_tokens=False)]
    wanted = [alone(model, tiny_tokenizer, weights, PROMPTS) for weights in MIXTURES]
    assert wanted[1] != long
    for right in (["x"] * 4, long):
        population = Population(
            NativeEngine(model, tiny_tokenizer),
            PROMPTS,
            [text or "." for text in right],
            Mixture(("a", "b"), MIXTURES),
            max_new_tokens=8,
            batch_size=64,
        )
        texts, _ = population.answer(every_pair(PROMPTS))
        assert texts == [text for own in wanted for text in own]


def test_what_does_not_fit_the_context_is_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="context of 512"):
        Population(
            NativeEngine(model, tiny_tokenizer),
            ["a" * 600],
            ["b"],
            Mixture(("a",), torch.ones(1, 1)),
            max_new_tokens=8,
            batch_size=8,
        )
