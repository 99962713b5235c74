"""Pass one and few-shot search on every architecture, where caches are of many kinds: as without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dispatch import PromptDispatcher
from experts.engine import NativeEngine
from experts.engine.population import Population
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from tests.dispatch.test_prompt import CATEGORIES, by_hand
from tests.experts.svf.test_architectures import ARCHITECTURES, adapted, make_base, perturb

PROMPTS = ["What is 2 + 2?", "How many legs has a dog, on a sunny day in May?", "?"]
WIDE = {"max_position_embeddings": 512, "n_positions": 512, "sliding_window": 512}
NARROW = [name for name, (config, _) in ARCHITECTURES.items() if "sliding_window" in config]


def two_experts(name: str, **changes: Any) -> Any:
    known = {key: value for key, value in changes.items() if key in ARCHITECTURES[name][0]}
    model = adapted(make_base(name, **known), rank=4)
    perturb(model)
    model.add_adapter("other", SVFConfig(target_modules="all-linear"))
    perturb(model, 1, "other")
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_base_names_domains_as_without_a_cache(name: str, tiny_tokenizer: Any) -> None:
    model = two_experts(name, **WIDE)
    scores = PromptDispatcher(NativeEngine(model, tiny_tokenizer), CATEGORIES, expert="default").scores(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        wanted = [by_hand(model, tiny_tokenizer, prompt, [*said]) for said in (CATEGORIES, CATEGORIES.values())]
        torch.testing.assert_close(scores[row], torch.cat(wanted), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("changes", [WIDE, {key: value for key, value in WIDE.items() if key != "sliding_window"}])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_population_answers_as_each_mixture_alone(name: str, changes: dict[str, int], tiny_tokenizer: Any) -> None:
    model = two_experts(name, **changes)
    mixture = Mixture(("default", "other"), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))
    right = ["4", "4 legs", "!"]
    population = Population(
        NativeEngine(model, tiny_tokenizer), PROMPTS, right, mixture, max_new_tokens=5, batch_size=16
    )
    texts, likelihoods = population.answer([(row, example) for row in range(3) for example in range(3)])
    for row in range(3):
        own = mixture.rows([row]).expand(3)
        here = slice(3 * row, 3 * row + 3)
        assert texts[here] == NativeEngine(model, tiny_tokenizer).generate(PROMPTS, max_new_tokens=5, mixture=own)
        wanted = NativeEngine(model, tiny_tokenizer).loglikelihood(PROMPTS, right, mixture=own)
        torch.testing.assert_close(likelihoods[here], wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NARROW)
def test_categories_that_no_window_holds_are_refused(name: str, tiny_tokenizer: Any) -> None:
    model = two_experts(name, max_position_embeddings=512)
    with pytest.raises(UserError, match="3 categories leave no room for a question in 4 tokens"):
        PromptDispatcher(NativeEngine(model, tiny_tokenizer), CATEGORIES).scores(PROMPTS)
