"""The gradient that is followed, against the formula written out; and that following it raises the reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.training.expert import check_expert_run
from experts.training.passthrough import refusals
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import ReinforceTrainer, _telling, make_trainer, reward_function


def trainer_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, domain: Any, options: Reinforce, folder: Path
) -> ReinforceTrainer:
    trainer = make_trainer(LoadedBase(model, tokenizer, "tiny"), domain, SVFConfig(), options, folder)
    with torch.no_grad():  # away from the base, or KL would be zero
        generator = torch.Generator().manual_seed(1)
        for z in trainer.model.parameters():
            if z.requires_grad:
                z.add_(0.2 * torch.randn(z.shape, generator=generator))
    return trainer


def log_likelihoods(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log π(y | x) [B]: summed over the sampled tokens, the end of the answer among them."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logps = logits.gather(-1, ids[:, 1:, None])[..., 0][:, -batch["completion_ids"].shape[1] :]
    return (logps * batch["completion_mask"]).sum(1)


@pytest.mark.parametrize("baseline", ["leave-one-out", "batch-mean", "none"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_gradient_is_reinforce(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path, baseline: Any, kl: float
) -> None:
    options = replace(options, baseline=baseline, kl=kl)
    trainer = trainer_for(tiny_model, tiny_tokenizer, letters, options, tmp_path)
    model = trainer.model
    rows = [row for row in letters.load("train").select(range(4)) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)

    completions = tiny_tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    rewards = torch.tensor(letters.reward(completions))
    with torch.no_grad(), model.disable_adapter():
        base_logps = log_likelihoods(model, batch)
    for parameter in model.parameters():  # disable_adapter leaves them frozen
        parameter.requires_grad_(
            parameter in {p for p in model.parameters() if p.ndim == 1 and p.dtype == torch.float32}
        )
    model.set_adapter("default")
    logps = log_likelihoods(model, batch)
    rewards = rewards - kl * (logps.detach() - base_logps)
    group = rewards.view(4, 4)
    advantage = {
        "leave-one-out": (group - (group.sum(1, keepdim=True) - group) / 3).view(-1),
        "batch-mean": rewards - rewards.mean(),
        "none": rewards,
    }[baseline]
    zs = [p for name, p in model.named_parameters() if "svf_z" in name]
    wanted = torch.autograd.grad(-(logps * advantage).mean(), zs)
    got = torch.autograd.grad(trainer._compute_loss(model, batch), zs)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=2e-3, atol=2e-5)


def test_the_end_of_the_answer_is_trained_and_the_prompt_is_not_retokenised(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    trainer = trainer_for(tiny_model, tiny_tokenizer, letters, replace(options, max_new_tokens=200), tmp_path)
    rows = [row for row in letters.load("train").select(range(4)) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    ended = batch["completion_ids"] == tiny_tokenizer.eos_token_id
    assert ended.any()
    assert batch["completion_mask"][ended].all()
    wanted = tiny_tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=True)
    assert batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist() == wanted["input_ids"]


def test_prompts_are_read_as_they_are_for_answers(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    """Strings, parts of text and silent turns, of which TRL's own reader knows nothing."""
    trainer = trainer_for(tiny_model, tiny_tokenizer, letters, options, tmp_path)
    turn = [{"role": "user", "content": [{"type": "text", "text": "00"}]}]
    prompts = ["00", turn, [*turn, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, *turn]]
    ids, images, fields = trainer._tokenize_prompts(prompts)
    assert ids == tokenize(tiny_tokenizer, prompts)
    assert ids[0] == ids[1]
    assert not images
    assert not fields


@pytest.mark.parametrize("parametrization", ["raw", "sigmoid"])
@pytest.mark.parametrize("rank", [None, 16])
def test_the_reward_rises(
    tiny_model: Any,
    tiny_tokenizer: Any,
    letters: Any,
    options: Reinforce,
    tmp_path: Path,
    parametrization: Any,
    rank: int | None,
) -> None:
    # Fewer singular values need larger steps.
    learning_rate = {"raw": 0.1, "sigmoid": 0.5}[parametrization] * (2 if rank else 1)
    options = replace(
        options,
        seed=1,
        steps=40,
        prompts_per_step=16,
        micro_batch_size=64,
        max_new_tokens=3,
        parametrization=parametrization,
        learning_rate=learning_rate,
    )
    base = LoadedBase(tiny_model, tiny_tokenizer, "tiny")
    trainer = make_trainer(base, letters, SVFConfig(rank=rank), options, tmp_path)
    trainer.args.save_strategy = "no"
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    # Four standard errors of a mean over ten steps of 64 samples.
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.04


def test_signed_rewards_are_plus_and_minus_one(letters: Any, options: Reinforce) -> None:
    metrics = {}
    reward = reward_function(letters, replace(options, reward="signed", wrong_reward=-0.1))
    assert reward(["ab", "zz", "az"], log_metric=metrics.__setitem__) == [1.0, -0.1, -0.1]
    assert metrics == {"accuracy": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples_per_prompt", 1), ("steps", 0), ("learning_rate", float("nan")), ("learning_rate", 0.0)],
)
def test_settings_that_cannot_work_are_refused(options: Reinforce, field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        replace(options, **{field: value})


def test_a_batch_that_does_not_divide_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    base = LoadedBase(tiny_model, tiny_tokenizer, "tiny")
    with pytest.raises(UserError, match="divide"):
        make_trainer(base, letters, SVFConfig(), replace(options, micro_batch_size=7), tmp_path)


def test_a_tracker_that_is_none_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    base = LoadedBase(tiny_model, tiny_tokenizer, "tiny")
    with pytest.raises(UserError, match="did you mean 'trackio'"):
        make_trainer(base, letters, SVFConfig(), replace(options, report_to="trackr"), tmp_path)


@pytest.mark.parametrize(
    "trainer",
    [{"top_k": 1}, {"generation_kwargs": {"top_k": 1}}, {"mask_truncated_completions": True, "weight_decay": 0.1}],
    ids=str,
)
def test_what_the_trainer_is_told_besides_counts(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    options = replace(options, trainer=trainer, steps=1)
    made = trainer_for(tiny_model, tiny_tokenizer, letters, options, tmp_path)
    rows = [row for row in letters.load("train").select(range(4)) for _ in range(4)]
    batch = made._generate_and_score_completions(rows)
    if "weight_decay" in trainer:
        ends = torch.tensor([*made.eos_token_ids, tiny_tokenizer.pad_token_id])  # TRL counts padding as an end, too
        ended = torch.isin(batch["completion_ids"], ends).any(1)
        assert not ended.all()
        assert torch.equal(batch["completion_mask"].any(1), ended)
        assert made.create_optimizer().param_groups[0]["weight_decay"] == 0.1
    else:  # of the most likely token alone all samples are one
        assert (batch["completion_ids"].view(4, 4, -1) == batch["completion_ids"].view(4, 4, -1)[:, :1]).all()
    made.train()
    assert made.state.global_step == 1


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"optim": "adamww"}, "trainer: RLOOConfig rejects this"),
        ({"adam_beta1": 3.0}, "trainer: the optimiser rejects this: .*beta"),
        ({"dataloader_num_workers": -1}, "trainer: .* rejects this: .*num_workers"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "trainer: the scheduler rejects this: .*foo"),
    ],
    ids=str,
)
def test_what_the_trainer_refuses_later_is_one_line_before_the_base_is_loaded(
    letters: Any, options: Reinforce, tmp_path: Path, trainer: dict[str, Any], message: str
) -> None:
    run = Run(tmp_path / "expert", {})
    with pytest.raises(UserError, match=message) as error:
        check_expert_run(run, letters, replace(options, trainer=trainer, schedule="cosine"))
    assert "\n" not in str(error.value)
    check_expert_run(run, letters, replace(options, trainer={"weight_decay": 0.1}))
    assert not [*tmp_path.iterdir()]


def test_what_the_construction_of_the_trainer_refuses_is_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^trainer: the trainer rejects this: no liger here$"),
        refusals("the trainer", {"use_liger_kernel": True}),
    ):
        raise ImportError("no liger\nhere")
    with pytest.raises(ImportError), refusals("the trainer", {}):  # a fault of the program's
        raise ImportError


def test_what_the_trainer_refuses_is_one_line(
    tiny_model: Any, tiny_tokenizer: Any, letters: Any, options: Reinforce, tmp_path: Path
) -> None:
    options = replace(options, trainer={"optim": "adamww"})
    with pytest.raises(UserError, match=r"trainer: RLOOConfig rejects this: .*adamww.* is not a valid") as error:
        trainer_for(tiny_model, tiny_tokenizer, letters, options, tmp_path)
    assert "\n" not in str(error.value)


def test_the_prompt_that_is_shown_has_samples_to_tell_apart() -> None:
    def entry(prompt: str, completion: str, reward: float | None) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": prompt}], "completion": completion, "reward": reward}

    alike = [entry("a", "1", -1.0), entry("a", "2", -1.0), entry("a", "3", -1.0)]
    telling = [entry("b", "4", None), entry("b", "5", 1.0), entry("b", "6", -1.0)]
    assert _telling([*alike, *telling], 3) == ("b", [("5", 1.0), ("4", None)])
    assert _telling(alike, 3)[0] == "a"
