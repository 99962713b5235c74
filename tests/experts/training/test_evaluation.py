from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from experts.domains.jsonl import Jsonl
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.training.evaluation import held_out_scores
from experts.training.statistics import Accuracy, accuracy, constant_answer, mcnemar


def test_wilson_interval_against_the_textbook() -> None:
    # Wilson (1927): (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), with z = 1.96
    low, high = Accuracy(81, 263).interval
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert Accuracy(0, 10).interval[0] == pytest.approx(0, abs=1e-12)


def test_partial_credit_does_not_count() -> None:
    assert accuracy([1.0, 0.99, 0.0, 1.0]) == Accuracy(2, 4)


def test_a_constant_answer_is_as_right_as_the_most_common_one() -> None:
    assert constant_answer(["1", "2", "1", "3", "1"]) == Accuracy(3, 5)


def test_mcnemar_is_the_binomial_test_of_the_changed() -> None:
    before = [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    after = [1.0] * 8 + [0.0] * 2 + [1.0] * 5
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(before, before) == 1.0


def test_each_row_is_answered_under_its_own_mixture(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase, library: ExpertLibrary
) -> None:
    model = library.load(tiny_model)
    prompts = ["Who?", "What is it?", "Why?"]
    mixture = Mixture(("a", "b"), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    answers = NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=6, mixture=mixture)
    assert answers != NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=6, mixture=Mixture.of({}, 3))
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts],
            "answer": answers,
            "choices": [None] * 3,
        }
    )
    domain = Jsonl(name="own", description="", path="", judged_by="exact")

    def scores(mixture: Mixture) -> list[float]:
        return held_out_scores(model, tiny_tokenizer, domain, rows, max_new_tokens=6, batch_size=2, mixture=mixture)

    assert scores(mixture) == [1.0] * 3
    assert scores(Mixture.of({}, 3)) != [1.0] * 3
