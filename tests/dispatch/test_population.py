"""A population's answers are those of each of its mixtures alone, whatever is shared and drafted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dispatch.population import answer_all
from experts.engine import generate, loglikelihood
from experts.errors import UserError
from experts.library import ExpertLibrary
from experts.mixture import Mixture

PROMPTS = ["one", "one and a bit", "one?", "one, two, three, four"]
MIXTURES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 0.4], [0.0, 1.0], [-0.5, 0.8]])


@pytest.fixture
def model(library: ExpertLibrary, tiny_model: Any) -> Any:
    return library.load(tiny_model)


def alone(model: Any, tokenizer: Any, weights: torch.Tensor, prompts: list[str]) -> list[str]:
    mixture = Mixture(("a", "b"), weights.expand(len(prompts), -1))
    return generate(model, tokenizer, prompts, max_new_tokens=8, mixture=mixture)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], ["zero", *PROMPTS]])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_and_likelihoods_are_those_of_each_alone(
    model: Any, tiny_tokenizer: Any, prompts: list[str], batch_size: int
) -> None:
    wanted = [alone(model, tiny_tokenizer, weights, prompts) for weights in MIXTURES]
    drafts = {
        "nobody's": ["7", "no", "seven of them", "-"],
        "one's own": [text or "." for text in wanted[2]],
        "one's beginning": [text[: 1 + row] or "." for row, text in enumerate(wanted[3])],
        "longer than an answer may be": [text + " and more" for text in wanted[1]],
    }
    for right in drafts.values():
        right = (right * 2)[: len(prompts)]
        texts, likelihoods = answer_all(
            model,
            tiny_tokenizer,
            prompts,
            right,
            Mixture(("a", "b"), MIXTURES),
            max_new_tokens=8,
            batch_size=batch_size,
        )
        assert texts == wanted
        for weights, own in zip(MIXTURES, likelihoods, strict=True):
            mixture = Mixture(("a", "b"), weights.expand(len(prompts), -1))
            scores = loglikelihood(model, tiny_tokenizer, prompts, right, mixture=mixture)
            torch.testing.assert_close(own, scores, atol=1e-3, rtol=1e-4)


def test_an_answer_that_ends_stops(model: Any, tiny_tokenizer: Any) -> None:
    """The end token may come at once, inside the draft, or after it."""
    long = alone(model, tiny_tokenizer, MIXTURES[1], PROMPTS)
    letter = next(character for text in long for character in text[1:] if character.isascii() and character.isalnum())
    model.generation_config.eos_token_id = [2, *tiny_tokenizer.encode(letter, add_special_tokens=False)]
    wanted = [alone(model, tiny_tokenizer, weights, PROMPTS) for weights in MIXTURES]
    assert wanted[1] != long
    for right in (["x"] * 4, long):
        texts, _ = answer_all(
            model,
            tiny_tokenizer,
            PROMPTS,
            [text or "." for text in right],
            Mixture(("a", "b"), MIXTURES),
            max_new_tokens=8,
            batch_size=64,
        )
        assert texts == wanted


def test_what_does_not_fit_the_context_is_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="context of 512"):
        answer_all(
            model, tiny_tokenizer, ["a" * 600], ["b"], Mixture(("a",), torch.ones(1, 1)), max_new_tokens=8, batch_size=8
        )
