"""Glue that puts the formulas of `experts.training.reinforce` into TRL's RLOO trainer.

TRL samples, scores, steps and logs. This overrides or uses the following of TRL 1.16, which are not documented:

    _tokenize_prompts                         prompts as for every other answer
    _generate_single_turn                     a prompt is read once for all its samples; few answers may be allowed
    _get_per_token_logps_and_entropies        TRL gets no likelihoods under π_old, which is π
    _calculate_rewards                        r, of all processes
    _generate_and_score_completions           A = r − λ·KL − baseline, in place of TRL's
    _prepare_inputs, _step, _buffered_inputs  the micro-batches of a step, not shuffled
    _compute_loss, _metrics                   −J, and the figures that TRL logs for a step
    _logs                                     the texts of a step, if they are to be kept
    create_optimizer                          the sigmoid parametrisation (transformers')

One hook leaves two things for another in the trainer: `_rewards`, because TRL scores within
`_generate_and_score_completions` and its batch does not hold the scores; and `_sampler_logps`, if vLLM samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad, selective_log_softmax_and_entropy, split_tensor_dict

from experts.domains.base import Domain, Reward, load_rows, reinforced, text_of
from experts.domains.judges.judged import total
from experts.engine import check_context
from experts.engine.constrained import Constraint, constraint_of
from experts.outside.chats import tokenize, words
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.svf.scaled import SVFLayer
from experts.svf.shared import SharedAdamW, of_one_kind
from experts.svf.sigmoid import SigmoidAdamW
from experts.training.log import Log, Progress
from experts.training.options import check_step
from experts.training.passthrough import DRAWING
from experts.training.reinforce import Reinforce, advantages, importance, kl_to_base, policy_loss, signed
from experts.training.shared_prompts import completion_logits, sample
from experts.training.token_logps import Headless, head_of, token_logps
from experts.training.trainer import LoadedBase, RunTrainer, trainer_arguments
from experts.training.vllm_rollouts import VLLMRollouts, check_rollouts

# Keys of TRL's batches besides a vision-language model's own inputs.
BATCH_FIELDS = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logps", "advantages"}
BATCH_FIELDS |= {"sampler_logps"}


class ReinforceTrainer(RunTrainer, RLOOTrainer):
    """RLOO with a choice of baseline and parametrisation, constrained answers, and prompts that are read once for all
    their samples."""

    _buffered_inputs: Any  # TRL's

    def __init__(
        self,
        *args: Any,
        options: Reinforce,
        constraint: Constraint | None = None,
        sum_judges: bool = False,
        **kwargs: Any,
    ) -> None:
        self.options = options
        self._rollouts: VLLMRollouts | None = None  # vLLM starts with the first step
        self.constraint = constraint
        self.sum_judges = sum_judges  # whether no reward alone says what is right
        with _unrounded(kwargs["model"]):
            super().__init__(*args, **kwargs)
        several = constraint is None and not isinstance(self.processing_class, ProcessorMixin)
        self.head = head_of(cast(Any, self.model).get_base_model()) if several else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        options = self.options
        if options.parametrization == "sigmoid":
            matrices = [(z, layer.svf_s) for _, layer, z in self._trained()]
            self.optimizer = SigmoidAdamW(matrices, options.learning_rate, options.max_grad_norm)
        if options.parametrization == "shared":
            self.optimizer = SharedAdamW(self._kinds(), options.learning_rate, options.max_grad_norm)
        return super().create_optimizer(model)

    def trained_parameters(self) -> int:
        if self.options.parametrization == "shared":
            return sum(kind[0].numel() for kind in self._kinds())
        return super().trained_parameters()

    def _kinds(self) -> list[list[nn.Parameter]]:
        return of_one_kind((name, z) for name, _, z in self._trained())

    def _trained(self) -> list[tuple[str, SVFLayer, nn.Parameter]]:
        """The trained z, each with its layer and the layer's name."""
        assert self.model is not None
        layers = [(name, module) for name, module in self.model.named_modules() if isinstance(module, SVFLayer)]
        return [(name, layer, layer.svf_z[own]) for name, layer in layers for own in layer.active_adapters]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The next micro-batch. TRL shuffles a step's completions; here those of one prompt stay together."""
        if "image" in generation_batch[0]:
            return super()._prepare_inputs(generation_batch)
        micro_batch = self._step % self.args.gradient_accumulation_steps
        if micro_batch == 0:
            batch = self._by_length(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = split_tensor_dict(batch, self.args.gradient_accumulation_steps)
        return self._buffered_inputs[micro_batch]

    def _by_length(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A step's completions sorted by length, for less padding; those of one prompt stay together."""
        lengths = batch["completion_mask"].sum(1).view(-1, self.options.samples_per_prompt)  # [P, S]
        order = lengths.amax(1).argsort()
        rows = torch.arange(lengths.numel(), device=order.device).view_as(lengths)
        rows = rows.gather(1, lengths.argsort(1))[order].flatten()
        return {
            name: value[rows] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()
        }

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        """Tokenises prompts as for every other answer. TRL's way is kept for pictures, which come with their rows."""
        if isinstance(self.processing_class, ProcessorMixin):
            return super()._tokenize_prompts(prompts)
        return tokenize(cast(PreTrainedTokenizerBase, self.processing_class), prompts), None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        """Token ids of each completion, with its end token last."""
        if multimodal_fields:
            # Only now is it known how many tokens the pictures take.
            check_context(cast(Any, self.model).config, max(map(len, prompt_ids)), self.options.max_new_tokens)
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        if self.options.rollouts == "vllm":
            return self._sampled_by_vllm(prompt_ids)
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=cast(Any, self.args.gradient_checkpointing_kwargs),
        ) as model:
            samples = self.options.samples_per_prompt
            plainly = not DRAWING & self.options.trainer.keys()
            config = self.generation_config
            completions = sample(model, prompt_ids[::samples], samples, config, self.constraint, plainly=plainly)
        return [self._until_end(completion) for completion in completions]

    def _sampled_by_vllm(self, prompt_ids: Sequence[list[int]]) -> list[list[int]]:
        model, args = cast(Any, self.model), cast(Any, self.args)
        if self._rollouts is None:
            self._rollouts = VLLMRollouts(
                model.get_base_model(),
                model.active_peft_config,
                ends=self.eos_token_ids,
                max_new_tokens=self.options.max_new_tokens,
                temperature=self.options.temperature,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
                max_model_len=args.vllm_max_model_length,
            )
        samples = self.options.samples_per_prompt
        sampled = self._rollouts.sample(model, prompt_ids[::samples], samples)
        self._sampler_logps = [torch.tensor(own.logps) for own in sampled]
        return [own.tokens for own in sampled]

    def _until_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self.eos_token_ids), len(tokens))
        return tokens[: end + 1]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)  # [B on all processes, number of rewards]
        weighted = rewards * self.reward_weights.to(rewards.device)
        self._rewards = weighted.nansum(1).masked_fill(rewards.isnan().all(1), math.nan)
        if self.sum_judges:
            opinions = self._rewards[~self._rewards.isnan()]
            self._metrics["train"]["accuracy"].append((opinions >= 1).float().mean().nan_to_num(0.0).item())
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch, with the advantages of `experts.training.reinforce` in place of its own."""
        batch = super()._generate_and_score_completions(inputs)
        rewards = self._rewards
        if self.options.kl:
            kl, tokens = self.accelerator.gather((self._kl_to_base(batch), batch["completion_mask"].sum(1)))
            self._metrics["train"]["kl"].append((kl.sum() / tokens.sum()).item())
            rewards = rewards - self.options.kl * kl
        of_all = advantages(rewards, self.options.samples_per_prompt, self.options.baseline)
        here = len(batch["completion_ids"])
        batch["advantages"] = of_all[self.accelerator.process_index * here :][:here]
        if self._rollouts is not None:
            batch["sampler_logps"] = pad(self._sampler_logps, padding_value=0).to(batch["advantages"].device)
        return batch

    @torch.no_grad()
    def _kl_to_base(self, batch: dict[str, Any]) -> Tensor:
        """`kl_to_base` of this process's completions [B]."""
        model: Any = self.model
        with disable_gradient_checkpointing(model, cast(Any, self.args.gradient_checkpointing_kwargs)):
            expert_logps, _ = self._token_logps(model, batch)
            with model.disable_adapter():
                base_logps, _ = self._token_logps(model, batch)
        return kl_to_base(expert_logps, base_logps, batch["completion_mask"])

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """`policy_loss`. TRL's clipped ratio to π_old has the same gradient if π_old = π."""
        logps, entropies = self._token_logps(model, inputs)
        mask = inputs["completion_mask"]  # [B, T]
        self._metrics["train"]["entropy"].append(((entropies * mask).sum() / mask.sum().clamp(min=1)).item())
        weights = inputs["advantages"]
        if "sampler_logps" in inputs:
            ratio = importance(logps.detach(), inputs["sampler_logps"], mask)
            self._metrics["train"]["importance"].append(ratio.mean().item())
            weights = weights * ratio
        return policy_loss(logps, mask, weights)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None, None]:
        """No numbers: TRL asks for the likelihood under π_old, but that is π, so `_compute_loss` does not need it."""
        return input_ids.new_zeros((len(input_ids), logits_to_keep), dtype=torch.float32), None, None

    def _token_logps(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """log π(y_t) and the entropy at t, both [B, T], of a batch's completions.

        TRL reads a prompt once for each of its samples, and without Triton its fused head also projects the prompts'
        tokens onto the vocabulary. Its way is only kept for prompts with pictures.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        length, rows = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        ours = self.head is not None or self.constraint is not None or self.accelerator.device.type == "cpu"
        if not ours or batch.get("pixel_values") is not None:
            pictures = {name: value for name, value in batch.items() if name not in BATCH_FIELDS}
            logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                model, ids, mask, length, rows, compute_entropy=True, **pictures
            )
            return logps, entropies
        parts = zip(ids.split(rows), mask.split(rows), strict=True)
        logps, entropies = zip(*(self._part_logps(model, *part, length) for part in parts), strict=True)
        return torch.cat(logps), torch.cat(entropies)

    def _part_logps(self, model: Any, ids: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """`_token_logps` of some rows, whose completions are the last `length` columns."""
        share = not self.options.gradient_checkpointing
        read = model if self.head is None else Headless(model, self.head)
        places: list[Tensor] = []
        found: list[Tensor] = []  # [2, b, length] each
        for rows, logits in completion_logits(read, ids, mask, length, share=share):  # [b, c, V]; headless [b, c, d]
            shown = slice(ids.shape[1] - length, ids.shape[1] - length + logits.shape[1])
            completions, said = ids[rows, shown], mask[rows, shown].bool()
            if self.head is None:
                if self.constraint is not None:
                    logits = logits + self.constraint.bias(completions, logits.shape[-1])
                own = torch.stack(
                    selective_log_softmax_and_entropy(
                        logits, completions, entropy_requires_grad=False, temperature=self.temperature
                    )
                )
            else:
                flat = token_logps(self.head, logits[said], completions[said], self.temperature)
                own = torch.stack([each.new_zeros(said.shape).masked_scatter(said, each) for each in flat])
            places.append(rows)
            found.append(F.pad(own, (0, length - logits.shape[1])))
        logps, entropies = torch.cat(found, 1)[:, torch.cat(places).argsort()]
        return logps, entropies


class KeepCompletions(TrainerCallback):
    """Writes what each step sampled and what that earned to a log, and shows two samples of one prompt."""

    def __init__(self, trainer: ReinforceTrainer, log: Log, progress: Progress) -> None:
        self.trainer, self.log, self.progress = trainer, log, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            sampled: Any = self.trainer._logs
            weights: Any = self.trainer.reward_weights.tolist()
            each = zip(*sampled["rewards"].values(), strict=True)
            entries: list[dict[str, Any]] = []
            for prompt, completion, rewards in zip(sampled["prompt"], sampled["completion"], each, strict=True):
                reward = total([*zip(weights, rewards, strict=True)])
                own = dict(zip(sampled["rewards"], map(_opinion, rewards), strict=True))
                several = {"rewards": own} if len(own) > 1 else {}
                chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                said = [turn | {"content": words(turn["content"])} for turn in chat]  # without pictures
                step = {"step": state.global_step, "reward": _opinion(reward), **several}
                entries.append({**step, "prompt": said, "completion": text_of(completion)})
                self.log.append(**entries[-1])
            self.progress.sampled(*_telling(entries, self.trainer.options.samples_per_prompt))


def _telling(entries: Sequence[dict[str, Any]], samples: int) -> tuple[str, list[tuple[str, float | None]]]:
    """A prompt whose samples differ in reward, if there is one, with its best and its worst sample."""
    prompts = [entries[start : start + samples] for start in range(0, len(entries), samples)]
    chosen = next((own for own in prompts if len({entry["reward"] for entry in own}) > 1), prompts[0])
    ranked = sorted(chosen, key=lambda entry: -math.inf if entry["reward"] is None else entry["reward"])
    shown = [(entry["completion"], entry["reward"]) for entry in (ranked[-1], ranked[0])]
    return chosen[0]["prompt"][-1]["content"], shown


@contextmanager
def _unrounded(base: Any) -> Iterator[None]:
    """Keeps TRL from rounding trained parameters to bfloat16, as it does beside a base of 4 or 8 bits: z is near 1."""
    said = {name: True for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if getattr(base, name, False)}
    for name in said:
        setattr(base, name, False)
    try:
        yield
    finally:
        for name in said:
            setattr(base, name, True)


def _opinion(reward: float) -> float | None:
    return None if math.isnan(reward) else reward


def reward_function(domain: Domain, options: Reinforce, one: Reward | None = None) -> Any:
    """The domain's scores as TRL rewards, with the share of right answers logged as `accuracy`.

    Args:
        one: one of the domain's rewards, if it has several.
    """
    (earned,) = [one] if one else reinforced(domain)
    raw = options.rewards(not earned.ready) == "raw"

    def reward(completions: list[Any], log_metric: Any, **columns: Any) -> list[float]:
        scores = earned.scores(completions, log_metric=log_metric, **columns)
        if earned.judges:
            opinions = [score for score in scores if not math.isnan(score)]
            log_metric("accuracy", sum(score >= 1 for score in opinions) / max(len(opinions), 1))
        return scores if raw else signed(scores, options.wrong_reward)

    reward.__name__ = earned.name  # TRL logs it by this name
    return reward


def make_trainer(
    base: LoadedBase, domain: Domain, adapter: PeftConfig, options: Reinforce, folder: Path
) -> ReinforceTrainer:
    """A trainer whose checkpoints go to `folder`.

    Raises:
        UserError: as `check_step` and `constraint_of` do, if the answers are constrained and there are pictures, or if
            the adapter has no z and a parametrisation of z is asked for.
    """
    raw = options.parametrization == "raw"
    if not (raw or isinstance(adapter, SVFConfig)):
        raise UserError(
            f"parametrization: {options.parametrization} is for SVF's z, which {PeftType(adapter.peft_type).value} "
            "does not have; leave parametrization out"
        )
    rows = load_rows(domain, "train")
    constraint = constraint_of(domain, base.tokenizer, options.max_new_tokens)
    if constraint is not None and "image" in rows.column_names:
        raise UserError(
            f"{domain.name} has a fixed set of answers, which cannot be combined with pictures: leave one of them out"
        )
    if options.rollouts == "vllm":
        check_rollouts(
            adapter,
            sharded=base.shard,
            few_answers=constraint is not None,
            pictures="image" in rows.column_names,
            drawing=DRAWING & options.trainer.keys(),
        )
    arguments = trainer_arguments(options, check_step(options, len(rows)), base.model.device, folder)
    if not raw:  # the optimiser itself clips the gradient of what it trains
        arguments["max_grad_norm"] = 0.0
    rewards = reinforced(domain)
    args = options.configuration(**arguments, reward_weights=[reward.weight for reward in rewards])
    return ReinforceTrainer(
        model=base.model,
        reward_funcs=[reward_function(domain, options, reward) for reward in rewards],
        args=args,
        train_dataset=rows,
        processing_class=base.tokenizer,
        peft_config=adapter,
        options=options,
        constraint=constraint,
        sum_judges=not any(reward.judges for reward in rewards),
        shard_base=base.shard,
    )
