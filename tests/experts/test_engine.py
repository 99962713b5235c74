from __future__ import annotations

from typing import Any

import pytest
import torch

from experts.engine import generate
from experts.errors import UserError

PROMPTS = ["a", "a much longer prompt than the first one", [{"role": "user", "content": "x"}], "bb", "a"]


def test_batches_answer_as_single_prompts_do(tiny_model: Any, tiny_tokenizer: Any) -> None:
    alone = [generate(tiny_model, tiny_tokenizer, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    for batch_size in (2, 5):
        heard: list[int] = []
        answers = generate(
            tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size, on_batch=heard.append
        )
        assert answers == alone
        assert sum(heard) == len(PROMPTS)
    assert len(set(alone)) > 1


def test_an_answer_is_greedy_and_starts_after_the_template(tiny_model: Any, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    wanted = []
    for _ in range(5):
        token = tiny_model(ids).logits[0, -1].argmax()
        if token == tiny_tokenizer.eos_token_id:
            break
        wanted.append(token)
        ids = torch.cat([ids, token.view(1, 1)], 1)
    assert generate(tiny_model, tiny_tokenizer, ["hello"], max_new_tokens=5) == [
        tiny_tokenizer.decode(wanted, skip_special_tokens=True)
    ]


def test_the_mode_of_the_model_is_left_as_it_was(tiny_model: Any, tiny_tokenizer: Any) -> None:
    for training in (True, False):
        tiny_model.train(training)
        generate(tiny_model, tiny_tokenizer, ["a"], max_new_tokens=1)
        assert tiny_model.training is training


def test_a_prompt_that_does_not_fit_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="context of 512"):
        generate(tiny_model, tiny_tokenizer, ["a" * 500], max_new_tokens=64)


def test_no_prompts_no_answers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert generate(tiny_model, tiny_tokenizer, [], max_new_tokens=4) == []
