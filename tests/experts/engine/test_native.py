from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from experts.engine import NativeEngine, evaluating
from experts.engine.batches import plan_batches
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear

MIXTURE = Mixture(("a", "b"), torch.tensor([[1.0, 0], [0, 0], [0, 1], [0.5, 0.5], [1, 0]]))
PROMPTS = ["a", "a much longer prompt than the first one", [{"role": "user", "content": "x"}], "bb", "a"]


def test_batches_answer_as_single_prompts_do(tiny_model: Any, tiny_tokenizer: Any) -> None:
    alone = [NativeEngine(tiny_model, tiny_tokenizer).generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    for batch_size in (2, 5):
        heard: list[int] = []
        answers = NativeEngine(tiny_model, tiny_tokenizer).generate(
            PROMPTS, max_new_tokens=12, batch_size=batch_size, on_batch=heard.append
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
    assert NativeEngine(tiny_model, tiny_tokenizer).generate(["hello"], max_new_tokens=5) == [
        tiny_tokenizer.decode(wanted, skip_special_tokens=True)
    ]


def test_the_mode_of_the_model_is_left_as_it_was(tiny_model: Any, tiny_tokenizer: Any) -> None:
    for training in (True, False):
        tiny_model.train(training)
        NativeEngine(tiny_model, tiny_tokenizer).generate(["a"], max_new_tokens=1)
        assert tiny_model.training is training


def test_a_prompt_that_does_not_fit_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="context of 512"):
        NativeEngine(tiny_model, tiny_tokenizer).generate(["a" * 500], max_new_tokens=64)


def test_no_prompts_no_answers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert NativeEngine(tiny_model, tiny_tokenizer).generate([], max_new_tokens=4) == []


@pytest.fixture
def model(tiny_model: Any) -> PeftModel:
    """Two random experts, of full rank and of rank 4."""
    model = get_peft_model(tiny_model, SVFConfig(), adapter_name="a").eval()
    model.add_adapter("b", SVFConfig(rank=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVFLinear):
                for z in layer.svf_z.values():
                    z.add_(0.5 * torch.randn(z.shape, generator=generator))
    return model


def test_a_mixed_batch_answers_as_its_rows_do_alone(model: PeftModel, tiny_tokenizer: Any) -> None:
    alone = [
        NativeEngine(model, tiny_tokenizer).generate([prompt], max_new_tokens=8, mixture=MIXTURE.rows([row]))[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert NativeEngine(model, tiny_tokenizer).generate(PROMPTS, max_new_tokens=8, mixture=MIXTURE) == alone
    assert len(set(alone)) == 4  # the first and the last are alike


def test_a_stream_is_the_answer_in_pieces(model: PeftModel, tiny_tokenizer: Any) -> None:
    [answer] = NativeEngine(model, tiny_tokenizer).generate(["hello"], max_new_tokens=12, mixture=MIXTURE.rows([0]))
    pieces = [*NativeEngine(model, tiny_tokenizer).stream("hello", max_new_tokens=12, mixture=MIXTURE.rows([0]))]
    assert "".join(pieces) == answer
    with pytest.raises(UserError, match="context of 512"):
        next(NativeEngine(model, tiny_tokenizer).stream("a" * 500, max_new_tokens=64, mixture=MIXTURE.rows([0])))


def test_an_error_while_streaming_is_raised(model: PeftModel, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="unknown expert 'c'"):
        list(NativeEngine(model, tiny_tokenizer).stream("hello", max_new_tokens=4, mixture=Mixture.of({"c": 1.0})))


def test_loglikelihood_is_the_sum_over_the_continuations_tokens(model: PeftModel, tiny_tokenizer: Any) -> None:
    continuations = ["yes", "n", "a longer one", "yes", "no"]
    scores = NativeEngine(model, tiny_tokenizer).loglikelihood(PROMPTS, continuations, mixture=MIXTURE, batch_size=2)
    for row, (prompt, text) in enumerate(zip(PROMPTS, continuations, strict=True)):
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        head = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        head = tiny_tokenizer.encode(head, add_special_tokens=False)
        tail = tiny_tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad(), model.base_model.mixed(MIXTURE.names, MIXTURE.weights[row : row + 1]):
            logps = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        wanted = sum(logps[len(head) + i - 1, token] for i, token in enumerate(tail))
        torch.testing.assert_close(scores[row], wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="as many continuations"):
        NativeEngine(model, tiny_tokenizer).loglikelihood(["a"], [])
    with pytest.raises(UserError, match="at least one token"):
        NativeEngine(model, tiny_tokenizer).loglikelihood(["a"], [""])


def test_batches_are_of_one_mixture_where_that_costs_less(model: PeftModel) -> None:
    def groups(batches: list[list[int]], mixture: Mixture) -> list[set[int]]:
        assert sorted(row for batch in batches for row in batch) == list(range(len(mixture)))
        group = mixture.groups()
        return [{group[row] for row in batch} for batch in batches]

    few = Mixture(("a", "b"), torch.tensor([[1.0, 0], [0, 1]] * 64))  # 2 mixtures, 64 rows each
    many = Mixture(("a", "b"), torch.rand(128, 2))
    assert all(len(batch) == 1 for batch in groups(plan_batches(model, [100] * 128, 64, few, 32), few))
    assert all(len(batch) == 32 for batch in groups(plan_batches(model, [100] * 128, 64, many, 32), many))
    assert plan_batches(model, [3, 1, 2], 4, None, 2) == [[1, 2], [0]]


@pytest.mark.parametrize("asked", [{"num_beams": 3}, {"return_dict_in_generate": True}, {"do_sample": True}])
def test_answers_are_greedy_whatever_a_checkpoint_asks_for(tiny_model: Any, tiny_tokenizer: Any, asked: Any) -> None:
    wanted = NativeEngine(tiny_model, tiny_tokenizer).generate(["one", "two"], max_new_tokens=8)
    tiny_model.generation_config.update(**asked)
    assert NativeEngine(tiny_model, tiny_tokenizer).generate(["one", "two"], max_new_tokens=8) == wanted
    pieces = NativeEngine(tiny_model, tiny_tokenizer).stream("one", max_new_tokens=8, mixture=Mixture.of({}))
    assert "".join(pieces) == wanted[0]


def test_a_model_in_training_is_evaluated_until_the_last_block_ends(tiny_model: Any) -> None:
    tiny_model.train()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(evaluating(tiny_model))
        second.enter_context(evaluating(tiny_model))
        first.close()
        assert not tiny_model.training
        second.close()
        assert tiny_model.training
