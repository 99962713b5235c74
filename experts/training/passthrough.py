"""Arguments of TRL's and transformers' configurations that a recipe passes on unchanged, in its `trainer` block.

An argument that one of our options sets, or that has no effect here, is refused; the error says what to use instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch.utils.data import DataLoader
from transformers import GenerationConfig, Trainer, get_scheduler
from transformers.utils import is_liger_kernel_available

from experts.engine.sampling import Sampling
from experts.outside.errors import UserError, unknown

SAME = ("learning_rate", "max_grad_norm", "seed", "gradient_checkpointing", "report_to", "temperature")
EVERY_STEP = "every step is logged and has a checkpoint"
VALIDATION = "use training.validate_every, validation_size and patience; the best step is what is kept"
DTYPE = "use the recipe's dtype; trained parameters are float32"
PLACE = "it depends on where the base is"
SHARED_OUT = "`selfadapt train` has --shard-base"
PUSHED = "push the finished folder"
NATIVE = "this package's own engine draws the samples"
ONCE = "each step uses its own samples, once"
BASELINE = "use training.baseline, and training.reward for the rewards"
REFERENCE = "the reference of training.kl is the base without the expert"
SHOWN = "`selfadapt train` has --log-completions"
NO_EFFECT = "it has no effect here; leave it out"

INSTEAD: Mapping[str, str] = {
    **{name: f"use training.{name}" for name in SAME},
    "output_dir": "`selfadapt train` has --output",
    "resume_from_checkpoint": "`selfadapt train` has --resume",
    "max_steps": "use training.steps",
    "num_train_epochs": "use training.steps",
    "per_device_train_batch_size": "use training.micro_batch_size",
    **dict.fromkeys(
        ("activation_checkpointing", "activation_checkpointing_kwargs"), "use training.gradient_checkpointing"
    ),
    "gradient_accumulation_steps": "use training.prompts_per_step (sequences_per_step) and micro_batch_size",
    "auto_find_batch_size": "use training.micro_batch_size",
    "lr_scheduler_type": "use training.schedule",
    "num_generations": "use training.samples_per_prompt",
    "max_completion_length": "use training.max_new_tokens",
    "beta": "use training.kl",
    "reward_weights": "use domain.reward_weights",
    "chat_template_kwargs": "use the recipe's chat_template_kwargs",
    "model_init_kwargs": "use the recipe's base block",
    "trust_remote_code": "use the recipe's base block",
    **dict.fromkeys(("logging_steps", "logging_strategy", "logging_first_step"), EVERY_STEP),
    **dict.fromkeys(("save_steps", "save_strategy", "save_total_limit", "save_only_model"), EVERY_STEP),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), VALIDATION),
    **dict.fromkeys(("per_device_eval_batch_size", "num_generations_eval", "batch_eval_metrics"), VALIDATION),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), DTYPE),
    **dict.fromkeys(("use_cpu", "dataloader_pin_memory"), PLACE),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), SHARED_OUT),
    **dict.fromkeys(("ds3_gather_for_generation", "ddp_broadcast_buffers", "ddp_find_unused_parameters"), NO_EFFECT),
    **dict.fromkeys(("remove_unused_columns", "disable_tqdm", "include_num_input_tokens_seen"), NO_EFFECT),
    **dict.fromkeys(("label_smoothing_factor", "label_names", "prediction_loss_only"), NO_EFFECT),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "include_for_metrics", "local_rank"), NO_EFFECT),
    **dict.fromkeys(("router_aux_loss_coef", "log_multimodal", "train_sampling_strategy"), NO_EFFECT),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size"), ONCE),
    **dict.fromkeys(("epsilon", "epsilon_high"), ONCE),
    **dict.fromkeys(("normalize_advantages", "reward_clip_range"), BASELINE),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), REFERENCE),
    **dict.fromkeys(("log_completions", "num_completions_to_print", "log_unique_prompts"), SHOWN),
    "cache_implementation": NATIVE,
    "use_vllm": "use training.rollouts: vllm",
    **dict.fromkeys(("vllm_gpu_memory_utilization", "vllm_max_model_length"), ""),
}
BY_BEGINNING = {
    "eval_": VALIDATION,
    "hub_": PUSHED,
    "push_to_hub": PUSHED,
    "vllm_": "of vLLM's arguments, only vllm_gpu_memory_utilization and vllm_max_model_length are passed on",
    "use_transformers_": NATIVE,
    "transformers_": NATIVE,
}
BOUNDED = ("top_p", "top_k", "min_p", "repetition_penalty")
DRAWING = {*BOUNDED, "generation_kwargs"}
"""Arguments beside the temperature that say how tokens are drawn."""
IN_GENERATION: Mapping[str, str] = {
    "max_new_tokens": "use training.max_new_tokens",
    "max_length": "use training.max_new_tokens",
    "temperature": "use training.temperature",
    "num_return_sequences": "use training.samples_per_prompt",
    **dict.fromkeys(("do_sample", "num_beams", "num_beam_groups", "penalty_alpha"), "training always samples"),
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), "the tokenizer defines it"
    ),
    **dict.fromkeys(("cache_implementation", "cache_config", "use_cache", "disable_compile", "max_time"), NATIVE),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), NO_EFFECT),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), NO_EFFECT),
    **dict.fromkeys(("stop_strings", "transformers_version"), NO_EFFECT),
}
"""Arguments in `generation_kwargs` that are already set or mean nothing → what to use instead."""


def _instead(name: str) -> str:
    if name in INSTEAD:
        return INSTEAD[name]
    return next((why for start, why in BY_BEGINNING.items() if name.startswith(start)), "")


def instead_of(config: type, name: str) -> str:
    """What a recipe uses instead of an argument of a configuration class; "" if `name` is not such an argument."""
    if name not in {field.name for field in fields(config)}:
        return ""
    return _instead(name) or "it belongs in the trainer block"


def check_passthrough(config: type, given: Mapping[str, Any]) -> None:
    """Checks arguments for a configuration class, and the types of their values.

    Raises:
        UserError: naming the first that the class does not know, that is not passed on, or whose value has another
            type.
    """
    hints = get_type_hints(config)
    for name, value in given.items():
        if name not in {field.name for field in fields(config)}:
            raise unknown(f"argument of {config.__name__} in trainer:", name, set(hints) - {*INSTEAD})
        if instead := _instead(name):
            raise UserError(f"trainer: {name} is not passed on to {config.__name__}: {instead}")
        try:
            TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"trainer: {name}: {error.errors()[0]['msg']}") from error
    if given.get("use_liger_kernel") and not is_liger_kernel_available():
        raise UserError(
            "trainer: use_liger_kernel needs liger-kernel, which is not installed: pip install liger-kernel"
        )
    try:
        generation = given.get("generation_kwargs") or {}
        if twice := next((name for name in BOUNDED if name in given and name in generation), None):
            raise UserError(f"{twice} is there twice, once in generation_kwargs: leave one of the two out")
        for block in (given, generation):
            Sampling(1.0, **{name: block[name] for name in BOUNDED if block.get(name) is not None})
        _check_generation(generation)
    except UserError as error:
        raise UserError(f"trainer: {error}") from error


def _check_generation(given: Mapping[str, Any]) -> None:
    """Checks transformers' generation arguments; raises UserError for one that is unknown or not passed on."""
    known = GenerationConfig().to_dict()
    for name in given:
        if name in IN_GENERATION:
            raise UserError(f"generation_kwargs: {name} is not passed on: {IN_GENERATION[name]}")
        if name not in known:
            raise unknown("argument of GenerationConfig in generation_kwargs:", name, {*known} - {*IN_GENERATION})
    try:
        GenerationConfig(do_sample=True, **given).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise UserError(f"generation_kwargs: GenerationConfig rejects this: {_one_line(error)}") from error


@contextmanager
def refusals(what: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Turns whatever `what` raises about arguments that a recipe passes on into UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        if not given:
            raise
        raise UserError(f"trainer: {what} rejects this: {_one_line(error)}") from error


def configured(config: type, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """An instance of a configuration class, made from our arguments and those that a recipe passes on.

    Raises:
        UserError: if the class refuses them.
    """
    with refusals(config.__name__, given):
        return config(**arguments, **given)


def check_built(arguments: Any, given: Mapping[str, Any]) -> None:
    """Builds what a trainer only builds late from its configuration: data loader, optimiser and scheduler.

    Raises:
        UserError: if one of them refuses its arguments.
    """
    with refusals("the data loader", given):
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=arguments.dataloader_num_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            persistent_workers=arguments.dataloader_persistent_workers,
        )
    if arguments.optim_target_modules:  # it needs the base
        return
    with refusals("the optimiser", given):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
    with refusals("the scheduler", given):
        steps = arguments.max_steps
        further = arguments.lr_scheduler_kwargs
        warmup = arguments.get_warmup_steps(steps)
        get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=further)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
