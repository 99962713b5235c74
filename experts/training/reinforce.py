"""REINFORCE for one expert (arXiv 2501.06252, section 3.2, equation 2): the algorithm, on plain tensors.

    J(z) = E[ log π_z(y | x) · A(x, y) ],   A = r(y) − λ·KL(y) − baseline

One step, for P prompts x:

    y ~ π_z(· | x), S times                      sampled completions, including the token that ends the answer
    r = signed(scores)                           the domain's reward
    A = advantages(r − λ · kl_to_base(log π_z(y_t), log π_base(y_t)))
    z ← AdamW step along −∇_z policy_loss(log π_z(y_t), A)

This differs from the paper's code: completions are sampled, not greedy, and several per prompt (TRL's minimum is two);
KL is KL(π_z ‖ base) as in the paper's formula, estimated on the samples; training uses exactly the token ids that were
sampled. `experts.training.trl_glue` makes TRL's trainer call these functions.

Shapes: P prompts with S samples each, B = P·S completions of T tokens, those of a prompt side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from trl import RLOOConfig

from experts.outside.errors import UserError, check_numbers
from experts.outside.fields import added
from experts.training.options import ExpertTraining

Baseline = Literal["leave-one-out", "batch-mean", "none"]
MOST_WEIGHT = 2.0
"""The largest weight of a completion that is likelier here than where it was drawn: a few must not dominate a step."""


def signed(scores: Sequence[float], wrong: float = -1.0) -> list[float]:
    """r(y): +1 for a right answer, whose score is 1 or more, `wrong` for any other; NaN (no opinion) stays NaN."""
    return [score if math.isnan(score) else 1.0 if score >= 1 else wrong for score in scores]


def kl_to_base(expert_logps: Tensor, base_logps: Tensor, mask: Tensor) -> Tensor:
    """KL(y) [B]: Σ_t log π_z(y_t) − log π_base(y_t) for each completion; its mean over samples is KL(π_z ‖ base).

    Args:
        expert_logps, base_logps: log-likelihoods of the sampled tokens in nats [B, T].
        mask: 1 for the tokens of a completion, including its end token, 0 after them [B, T].
    """
    return ((expert_logps - base_logps) * mask).sum(1)


def advantages(rewards: Tensor, samples: int, baseline: Baseline) -> Tensor:
    """A [B], from r(y) − λ·KL(y) [B].

    Args:
        samples: S, per prompt.
        baseline: "leave-one-out" is the mean of the other samples of the same prompt, "batch-mean" the mean of all
            completions, "none" is 0. The first and the last do not change the gradient's expectation.

    A reward of NaN is no opinion: its completion counts in no mean, and its A is 0. So is A under "leave-one-out" if no
    other sample of the prompt has a reward.
    """
    if baseline == "leave-one-out":
        of_prompt = rewards.view(-1, samples)  # [P, S]
        counts = (~of_prompt.isnan()).sum(1, keepdim=True)
        others = (of_prompt.nansum(1, keepdim=True) - of_prompt) / (counts - 1)
        found = (of_prompt - others).flatten()
    else:
        found = rewards - rewards.nanmean() if baseline == "batch-mean" else rewards
    return found.where(~found.isnan(), 0.0)


def importance(logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
    """w [B] = min(π_z(y) / μ(y), `MOST_WEIGHT`) for completions that another engine has drawn from its own μ.

    μ is π_z computed by other kernels, so not quite the same. E_μ[w · f] is E_π[f], except for what the bound cuts off.

    Args:
        logps, sampler_logps: log π_z and log μ of the sampled tokens, in nats [B, T].
        mask: as in `kl_to_base`.
    """
    return ((logps - sampler_logps) * mask).sum(1).exp().clamp(max=MOST_WEIGHT)


def policy_loss(logps: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """−J(z) = −mean_B( A · Σ_t log π_z(y_t) ), a scalar whose gradient is REINFORCE's.

    Args:
        logps: log π_z of the sampled tokens, in nats [B, T].
        mask: as in `kl_to_base`.
        advantages: A [B]; no gradient flows through it.
    """
    return -(advantages * (logps * mask).sum(1)).mean()


@dataclass(frozen=True, kw_only=True)
class Reinforce(ExpertTraining):
    """How an expert is trained by reinforcement."""

    rows_option: ClassVar[str] = "prompts_per_step"
    config_class: ClassVar[type] = RLOOConfig
    also_called: ClassVar[Mapping[str, str]] = {
        **ExpertTraining.also_called,
        "num_generations": "samples_per_prompt",
        "beta": "kl",
    }

    prompts_per_step: int = 16
    """P, over all processes together."""
    samples_per_prompt: int = 4
    """S, the completions of each prompt, which are compared with each other."""
    temperature: float = 1.0
    """The temperature at which completions are sampled."""
    reward: Literal["signed", "raw"] | None = None
    """signed: +1 for a right answer, whose score is 1 or more, and `wrong_reward` for any other. raw: the score itself.
    None: raw if your own reward function gives the scores, else signed."""
    wrong_reward: float = -1.0
    """What a wrong answer earns if `reward` is signed."""
    baseline: Baseline = "leave-one-out"
    """What is subtracted from a reward; `advantages` says what each is."""
    kl: float = 0.0
    """λ, the coefficient of KL(π_z ‖ base)."""
    rollouts: Literal["native", "vllm"] = added(default="native")
    """Who writes the samples: this package, or vLLM, where an expert of limited rank is a LoRA that changes with every
    step."""
    parametrization: Literal["raw", "sigmoid", "shared"] = "raw"
    """raw trains z itself; sigmoid is the original code's z = σ(p) with the nuclear norm kept; shared trains one z for
    all layers' matrices of a kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2:
            raise UserError("samples_per_prompt must be at least 2 (the paper's single sample has no variance to use)")
        check_numbers(self, least=[("kl", 0)], positive=["temperature"])
        if not math.isfinite(self.wrong_reward):
            raise UserError(f"wrong_reward must be a number, not {self.wrong_reward}")
        own = [name for name in self.trainer if name.startswith("vllm_")]
        if own and self.rollouts != "vllm":
            raise UserError(f"trainer: {own[0]} is only for rollouts: vllm; set that, or leave {own[0]} out")

    def arguments(self) -> dict[str, Any]:
        return {
            **super().arguments(),
            "num_generations": self.samples_per_prompt,
            "max_completion_length": self.max_new_tokens,
            "temperature": self.temperature,
            "beta": 0.0,  # KL is subtracted here instead
        }

    def rewards(self, own: bool) -> Literal["signed", "raw"]:
        """What `reward` means; `own` says whether the user's own function gives the scores."""
        return self.reward or ("raw" if own else "signed")

    @property
    def sequences_per_row(self) -> int:
        return self.samples_per_prompt
