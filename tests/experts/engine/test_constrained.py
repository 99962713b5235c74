"""Under a constraint a model is a distribution over the answers, and the same one wherever it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from experts.engine import NativeEngine
from experts.engine.batches import pad_batch
from experts.engine.constrained import Constraint
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.training.evaluation import Problems, held_out_scores
from experts.training.reinforce import Reinforce
from experts.training.shared_prompts import sample
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import make_trainer

ANSWERS = ["cat", "car", "dog", "do"]
PROMPTS = [f"Which one is {i}?" for i in range(16)]


@dataclass(frozen=True)
class Animals:
    """A domain with a few answers, of which the first is the right one."""

    name: str = "animals"
    description: str = "Name the animal."
    answers: tuple[str, ...] = tuple(ANSWERS)

    def load(self, split: str) -> Dataset:
        rows = [{"id": p, "prompt": [{"role": "user", "content": p}], "answer": "cat"} for p in PROMPTS]
        return Dataset.from_list(rows)

    def reward(self, completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return [float(text == right) for text, right in zip(texts, answer, strict=True)]


@pytest.fixture
def options() -> Reinforce:
    return Reinforce(
        learning_rate=0.1, steps=12, prompts_per_step=16, samples_per_prompt=4, max_new_tokens=4, micro_batch_size=64
    )


def likelihoods(model: Any, tokenizer: Any, constraint: Constraint, prompts: Sequence[str] = PROMPTS) -> torch.Tensor:
    """p(answer | prompt) under the bias: [prompts, answers]."""
    heads = tokenize(tokenizer, prompts)
    columns = []
    for answer in constraint.answers:
        batch = pad_batch(model, tokenizer, [[*head, *answer] for head in heads])
        logits = model(**batch).logits[:, -len(answer) - 1 : -1]
        chosen = torch.tensor([answer] * len(heads))
        logps = (logits + constraint.bias(chosen, logits.shape[-1])).log_softmax(-1)
        columns.append(logps.gather(2, chosen[..., None]).sum((1, 2)).exp())
    return torch.stack(columns, 1)


@torch.no_grad()
def test_the_answers_share_all_of_the_probability(tiny_model: Any, tiny_tokenizer: Any) -> None:
    constraint = Constraint(tiny_tokenizer, ANSWERS)
    p = likelihoods(tiny_model, tiny_tokenizer, constraint)
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    assert (p > 1e-6).all()


@pytest.mark.parametrize(
    ("answers", "prompt"),
    [
        (ANSWERS, PROMPTS[0]),
        (["hard-math", "hard-code", "math"], PROMPTS[0]),  # what opens one name continues another
        (["a", "aa", "aaa", "aaaa"], PROMPTS[0]),  # repeated tokens, each name the beginning of the next
        (["on", "onion", "onions", "ion"], PROMPTS[0]),
        (["hard-math", "hard-code", "math"], "Which of hard-math, hard-code and math is it? hard-"),
        (["math", "code"], "math"),
    ],
)
@torch.no_grad()
def test_samples_follow_that_distribution(
    tiny_model: Any, tiny_tokenizer: Any, answers: list[str], prompt: str
) -> None:
    constraint = Constraint(tiny_tokenizer, answers)
    prompts = [prompt]
    (wanted,) = likelihoods(tiny_model, tiny_tokenizer, constraint, prompts)
    torch.manual_seed(0)
    longest = max(map(len, constraint.answers))
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=True, eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=0
    )
    ids = sample(tiny_model, tokenize(tiny_tokenizer, prompts), 2000, config, constraint)
    texts = tiny_tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert set(texts) <= set(answers)
    got = torch.tensor([texts.count(answer) / len(texts) for answer in answers])
    torch.testing.assert_close(got, wanted, atol=0.045, rtol=0)  # four standard errors
    assert (wanted < 0.95).all()  # a distribution, and not one answer


def test_a_greedy_answer_is_one_of_them(tiny_model: Any, tiny_tokenizer: Any) -> None:
    constraint = Constraint(tiny_tokenizer, ANSWERS)
    answers = NativeEngine(tiny_model, tiny_tokenizer).generate(PROMPTS, max_new_tokens=4, constraint=constraint)
    assert set(answers) <= set(ANSWERS)
    assert not set(NativeEngine(tiny_model, tiny_tokenizer).generate(PROMPTS, max_new_tokens=4)) & set(ANSWERS)


def test_a_model_that_never_says_them_learns_which_is_right(
    tiny_model: Any, tiny_tokenizer: Any, options: Reinforce, tmp_path: Path
) -> None:
    base = LoadedBase(tiny_model, tiny_tokenizer, "tiny")
    trainer = make_trainer(base, Animals(), SVFConfig(), options, tmp_path)
    trainer.args.save_strategy = "no"
    constraint = Constraint(tiny_tokenizer, ANSWERS)

    def right() -> float:
        with torch.no_grad():
            return likelihoods(trainer.model, tiny_tokenizer, constraint)[:, 0].mean().item()

    before = right()
    trainer.train()
    assert right() > before + 0.2
    trainer.model.eval()
    problems = Problems(Animals(), Animals().load("test"), options.max_new_tokens)
    scores = held_out_scores(trainer.model, tiny_tokenizer, problems)
    assert sum(scores) > 0


def test_the_likelihood_that_is_trained_is_the_constrained_one(
    tiny_model: Any, tiny_tokenizer: Any, options: Reinforce, tmp_path: Path
) -> None:
    options = replace(options, baseline="none", reward="raw")
    base = LoadedBase(tiny_model, tiny_tokenizer, "tiny")
    trainer = make_trainer(base, Animals(), SVFConfig(), options, tmp_path)
    rows = [row for row in Animals().load("train").select(range(4)) for _ in range(4)]
    torch.manual_seed(1)
    batch = trainer._generate_and_score_completions(rows)
    texts = tiny_tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert {"cat"} <= set(texts) <= set(ANSWERS)
    p = likelihoods(trainer.model, tiny_tokenizer, Constraint(tiny_tokenizer, ANSWERS))[:4]
    wanted = -sum(p[i // 4, 0].log() for i, text in enumerate(texts) if text == "cat") / len(texts)
    torch.testing.assert_close(trainer._compute_loss(trainer.model, batch), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_greedy_answer_goes_where_each_next_token_is_likeliest(tiny_model: Any, tiny_tokenizer: Any) -> None:
    names = ["hard-math", "hard-code", "math"]
    constraint = Constraint(tiny_tokenizer, names)
    answers = NativeEngine(tiny_model, tiny_tokenizer).generate(PROMPTS, max_new_tokens=10, constraint=constraint)
    for head, answer in zip(tokenize(tiny_tokenizer, PROMPTS), answers, strict=True):
        said: tuple[int, ...] = ()
        while said not in constraint.answers:
            logits = tiny_model(torch.tensor([[*head, *said]])).logits[0, -1]
            said += (max({a[len(said)] for a in constraint.answers if a[: len(said)] == said}, key=logits.__getitem__),)
        assert answer == tiny_tokenizer.decode(said, skip_special_tokens=True)


def test_answers_must_end_within_the_new_tokens(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = Animals().load("test")
    with pytest.raises(UserError, match=r"longest answer of animals has 4 tokens.* at least that, not 3"):
        held_out_scores(tiny_model, tiny_tokenizer, Problems(Animals(), rows, 3))
