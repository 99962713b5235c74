"""What hangs the formulas of `experts.training.reinforce` into TRL's RLOO trainer; this is glue.

TRL samples, scores, steps and logs. Its hooks are overridden where it would do something else than section 3.2 says, or
the same more slowly. What one hook learns and another needs has to wait in the trainer: `_rewards` and
`_sampled_logps`, until the advantages are computed, and `_micro_batches`, until the step is over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import RLOOConfig, RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad, selective_log_softmax_and_entropy, split_tensor_dict

from experts.domains.base import Domain, load_rows, scores_of
from experts.engine import check_context
from experts.engine.constrained import Constraint, constraint_of
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.training.callbacks import Diverged
from experts.training.options import trainer_arguments
from experts.training.parametrization import SigmoidAdamW
from experts.training.reinforce import Reinforce, advantages, kl_to_base, policy_loss, signed
from experts.training.sharding import shard
from experts.training.shared_prompts import completion_logits, sample

# What TRL's batches hold besides a vision-language model's own inputs.
BATCH_FIELDS = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logps", "advantages"}


class ReinforceTrainer(RLOOTrainer):
    """RLOO with the choice of baseline and parametrisation, answers from a few, prompts that are read once for all
    their samples, and a stop at the first NaN."""

    def __init__(
        self,
        *args: Any,
        options: Reinforce,
        constraint: Constraint | None = None,
        shard_base: bool = False,
        **kwargs: Any,
    ) -> None:
        self.options = options
        self.constraint = constraint
        self.shard_base = shard_base
        self._sampled_logps: list[Tensor] = []
        self._rewards = torch.empty(0)
        self._micro_batches: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.shard_base:
            shard(model)
        else:
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.options.parametrization == "sigmoid":
            assert self.model is not None
            layers = [module for module in self.model.modules() if isinstance(module, SVFLinear)]
            matrices = [(layer.svf_z[name], layer.svf_s) for layer in layers for name in layer.active_adapters]
            self.optimizer = SigmoidAdamW(matrices, self.options.learning_rate, self.options.max_grad_norm)
        return super().create_optimizer(model)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sampled = not torch.is_grad_enabled()
        if sampled and not self.options.kl:
            # TRL asks for the likelihood under π_old. It is π itself, so that `_compute_loss` does not need it.
            return input_ids.new_zeros((len(input_ids), logits_to_keep), dtype=torch.float32), None, None
        ours = self.constraint is not None or self.accelerator.device.type == "cpu"
        if ours and kwargs.get("pixel_values") is None:
            result = self._token_logps(model, input_ids, attention_mask, logits_to_keep)
        else:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        if sampled:
            self._sampled_logps.append(result[0])  # [B, T]: under the expert, then under the base
        return result

    def _token_logps(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> tuple[Tensor, Tensor, None]:
        """log π(y_t) and the entropy at t, both [B, T], of the last T = `logits_to_keep` tokens.

        TRL reads a prompt once for each of its samples, and where there is no Triton its fused head projects the
        tokens of the prompts on the vocabulary too.
        """
        logps, entropies = [], []
        rows = self.args.per_device_train_batch_size
        for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
            logits = completion_logits(
                model, ids, mask, logits_to_keep, share=not self.options.gradient_checkpointing
            )  # [b, T, V]
            completions = ids[:, -logits_to_keep:]
            if self.constraint is not None:
                logits = logits + self.constraint.bias(completions, logits.shape[-1])
            row_logps, row_entropies = selective_log_softmax_and_entropy(
                logits,
                completions,
                entropy_requires_grad=False,
                temperature=self.temperature,
            )
            logps.append(row_logps)
            entropies.append(row_entropies)
        return torch.cat(logps), torch.cat(entropies), None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The micro-batch at hand. TRL shuffles a step's completions; here those of one prompt stay together."""
        if "image" in generation_batch[0]:
            return super()._prepare_inputs(generation_batch)
        micro_batch = self._step % self.args.gradient_accumulation_steps
        if micro_batch == 0:
            batch = self._generate_and_score_completions(generation_batch)
            self._micro_batches = split_tensor_dict(batch, self.args.gradient_accumulation_steps)
        return self._micro_batches[micro_batch]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        """Prompts are read as for every other answer. TRL's way is left for pictures, which come with their rows."""
        if isinstance(self.processing_class, ProcessorMixin):
            return super()._tokenize_prompts(prompts)
        return tokenize(cast(PreTrainedTokenizerBase, self.processing_class), prompts), None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        """Token ids of each completion, its end token the last."""
        if multimodal_fields:
            # Only now it is known how many tokens the pictures take.
            check_context(cast(Any, self.model).config, max(map(len, prompt_ids)), self.options.max_new_tokens)
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        samples = self.options.samples_per_prompt
        once = [torch.tensor(ids, device=self.accelerator.device) for ids in prompt_ids[::samples]]
        ids = pad(once, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(prompt) for prompt in once], padding_value=0, padding_side="left")
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=cast(Any, self.args.gradient_checkpointing_kwargs),
        ) as model:
            completions = sample(model, ids, mask, samples, self.generation_config, self.constraint)
        ends = torch.isin(completions, torch.tensor(self.eos_token_ids, device=completions.device))
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, completions.shape[1])
        return [row[:length] for row, length in zip(completions.tolist(), lengths.tolist(), strict=True)]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """`policy_loss`. TRL's clipped ratio to π_old has the same gradient where π_old = π."""
        mask = inputs["completion_mask"]  # [B, T]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], mask], 1),
            mask.shape[1],
            compute_entropy=True,
            **{name: value for name, value in inputs.items() if name not in BATCH_FIELDS},
        )
        assert entropies is not None
        self._metrics["train"]["entropy"].append(((entropies * mask).sum() / mask.sum()).item())
        return policy_loss(logps, mask, inputs["advantages"])

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)  # [B on all processes, 1]
        self._rewards = rewards.sum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch, with the advantages of `experts.training.reinforce` in the place of its own."""
        self._sampled_logps.clear()
        batch = super()._generate_and_score_completions(inputs)
        rewards = self._rewards
        if self.options.kl:
            expert_logps, base_logps = self._sampled_logps
            kl = kl_to_base(expert_logps, base_logps, batch["completion_mask"])
            rewards = rewards - self.options.kl * self.accelerator.gather(kl)
        of_all = advantages(rewards, self.options.samples_per_prompt, self.options.baseline)
        here = len(batch["completion_ids"])
        batch["advantages"] = of_all[self.accelerator.process_index * here :][:here]
        return batch

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        step = self.state.global_step + 1
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:  # sampling from a distribution that is not one
            if "probability tensor" in str(error):
                raise Diverged(step, "the model's distribution") from error
            raise
        if not torch.isfinite(loss):
            raise Diverged(step, "the loss")
        return loss


def reward_function(domain: Domain, options: Reinforce) -> Any:
    """The domain's scores as TRL rewards, with the share of right answers logged as `accuracy`."""

    def reward(completions: list[Any], log_metric: Any, **columns: Any) -> list[float]:
        scores = scores_of(domain, completions, **columns)
        log_metric("accuracy", sum(score >= 1 for score in scores) / len(scores))
        return scores if options.reward == "raw" else signed(scores, options.wrong_reward)

    return reward


def make_trainer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    adapter: PeftConfig,
    options: Reinforce,
    folder: Path,
    *,
    shard_base: bool = False,
) -> ReinforceTrainer:
    """A trainer whose checkpoints go to `folder`. The base gets the adapter; its own weights stay as they are.

    Raises:
        UserError: as `check_step` and `constraint_of` do, if the answers are a few and there are pictures, or if the
            adapter has no z for the sigmoid parametrisation.
    """
    sigmoid = options.parametrization == "sigmoid"
    if sigmoid and not isinstance(adapter, SVFConfig):
        raise UserError(
            f"parametrization: sigmoid is one of SVF's z, which {PeftType(adapter.peft_type).value} does not have"
        )
    rows = load_rows(domain, "train")
    constraint = constraint_of(domain, tokenizer, options.max_new_tokens)
    if constraint is not None and "image" in rows.column_names:
        raise UserError(f"the answers of {domain.name} are a few, which pictures do not go with: leave either out")
    arguments = trainer_arguments(options, base, len(rows), folder)
    if sigmoid:  # its optimiser clips the gradient of p
        arguments["max_grad_norm"] = 0.0
    args = RLOOConfig(
        **arguments,
        num_generations=options.samples_per_prompt,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        beta=options.kl,
    )
    return ReinforceTrainer(
        model=base,
        reward_funcs=reward_function(domain, options),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
        options=options,
        constraint=constraint,
        shard_base=shard_base,
    )
