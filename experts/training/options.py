"""The options that every training has, and checks of what can be wrong before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from experts.engine import context_of
from experts.outside.chats import check_template, tokenize
from experts.outside.errors import SEEDS, UserError, check_numbers, check_whole, unknown
from experts.outside.fields import added
from experts.outside.pictures import text_tokenizer
from experts.training.passthrough import check_passthrough, configured, instead_of
from experts.training.processes import processes


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of every training, whatever it trains. Learning rate and steps depend on what is learned.

    Raises:
        UserError: for a number that no training can use.
    """

    also_called: ClassVar[Mapping[str, str]] = {"max_steps": "steps"}
    """TRL's names for our options, which recipes may use as well."""

    learning_rate: float
    """AdamW's learning rate, before any schedule."""
    steps: int
    """Optimiser steps."""
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this length."""
    seed: int = 0
    """The seed of the order of rows and of all that is drawn."""

    def __post_init__(self) -> None:
        check_numbers(self, least=[("max_grad_norm", 0)], positive=["learning_rate"], counts=["steps"])
        check_whole("seed", self.seed, least=0, most=SEEDS)

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' trainer that follow from them."""
        return {
            "max_steps": self.steps,
            "learning_rate": self.learning_rate,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class ExpertTraining(TrainingOptions):
    """The options of every objective that trains an expert or another adapter on one domain."""

    rows_option: ClassVar[str]
    """The name of the option that says how many rows one step takes."""
    config_class: ClassVar[type]
    """The class of the trainer's configuration."""
    also_called: ClassVar[Mapping[str, str]] = {
        **TrainingOptions.also_called,
        "max_completion_length": "max_new_tokens",
    }

    max_new_tokens: int = 32
    """The most tokens that an answer may have."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate's schedule: constant, or down to zero along half a cosine."""
    validate_every: int = 5
    """Steps between greedy evaluations on the validation split. A checkpoint is written with every step."""
    validation_size: int = 128
    """Problems of the validation split that are answered each time."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best; None never stops early."""
    micro_batch_size: int = 16
    """Sequences of one forward and backward pass on one process; changes memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    report_to: str = "none"
    """A tracker that transformers knows: trackio, wandb, tensorboard, or none."""
    trainer: dict[str, Any] = added(default_factory=dict)
    """Further arguments of TRL's RLOOConfig, or of transformers' TrainingArguments for next_token, by their names. In a
    file it is a block of its own too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("max_new_tokens", "validate_every", "validation_size", "patience", "micro_batch_size")
        check_numbers(self, counts=[*counts, self.rows_option])
        check_passthrough(self.config_class, self.trainer)

    def arguments(self) -> dict[str, Any]:
        return {
            **super().arguments(),
            "lr_scheduler_type": self.schedule,
            "gradient_checkpointing": self.gradient_checkpointing,
            "report_to": self.report_to,
            "logging_steps": 1,
            "save_steps": 1,  # trained parameters are few
            "save_total_limit": 2,
            "ddp_find_unused_parameters": False,
        }

    def configuration(self, **arguments: Any) -> Any:
        """The trainer's configuration, from our arguments and those in `trainer`; raises as `configured` does."""
        return configured(self.config_class, arguments, self.trainer)

    @classmethod
    def elsewhere(cls, name: str) -> str:
        """What to use instead of a name that is an argument of the trainer's configuration and no field; else ""."""
        return instead_of(cls.config_class, name)

    @property
    def rows_per_step(self) -> int:
        return getattr(self, self.rows_option)

    @property
    def sequences_per_row(self) -> int:
        return 1


def check_decay_and_warmup(options: Any) -> None:
    """Raises UserError for a `weight_decay` or a `warmup` that no training can use."""
    check_numbers(options, least=[("weight_decay", 0), ("warmup", 0)])
    if options.warmup > 1:
        raise UserError(f"warmup is a share of the steps: it must be at most 1, not {options.warmup}")


def divide(option: str, rows: int, micro_batch_size: int, *, sequences: int = 1) -> tuple[int, int]:
    """The sequences of one forward and backward pass on one process, and the passes of one optimiser step.

    Args:
        option: the name of the option that asks for `rows` rows per step, over all processes together.
        sequences: the sequences of one row; they stay on one process.

    Raises:
        UserError: if the rows do not divide over the processes, or a process's sequences into micro-batches.
    """
    count = processes().num_processes
    if rows % count:
        raise UserError(
            f"{option} {rows} cannot be divided evenly among {count} processes: choose a multiple of {count}"
        )
    own = rows // count * sequences
    micro_batch = min(micro_batch_size, own)
    if own % micro_batch:
        fits = max(size for size in range(1, micro_batch) if own % size == 0)
        raise UserError(
            f"micro_batch_size {micro_batch_size} does not divide the {own} sequences that a step has on one process "
            f"({option} {rows}): choose {fits}"
        )
    return micro_batch, own // micro_batch


def check_step(options: ExpertTraining, rows: int) -> tuple[int, int]:
    """`divide` for a step on a training split of `rows` rows.

    Raises:
        UserError: if a step asks for more rows than there are, or does not divide; or as `check_tracker` does.
    """
    check_tracker(options.report_to)
    asked = options.rows_per_step
    if asked > rows:
        raise UserError(
            f"{options.rows_option} is {asked}, but there are only {rows} rows to train on: ask for no more"
        )
    return divide(options.rows_option, asked, options.micro_batch_size, sequences=options.sequences_per_row)


def check_tracker(name: str) -> None:
    """Raises UserError for a tracker that transformers does not know, or that is not installed."""
    if name not in ("none", *INTEGRATION_TO_CALLBACK):
        raise unknown("tracker in report_to", name, ["none", *INTEGRATION_TO_CALLBACK])
    if name not in ("none", *get_available_reporting_integrations()):
        raise UserError(f"report_to: {name} is not installed; install it, or choose none")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
    """Raises UserError for a tokenizer that cannot end an answer, pad a batch or render a chat."""
    text = text_tokenizer(tokenizer)
    for token, what in (("eos", "end"), ("pad", "padding")):
        if getattr(text, f"{token}_token_id") is None:
            raise UserError(f"the base's tokenizer has no {what} token, which training needs: set its {token}_token")
    check_template(tokenizer)


def check_prompts(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    splits: Iterable[Dataset],
    new_tokens: int,
) -> None:
    """Raises UserError for a prompt that the template refuses, or that leaves its answer no room in the context.

    Prompts with pictures are not checked here; their length is only known when the pictures are read.
    """
    context = context_of(config)
    for rows in splits:
        if "image" in rows.column_names:
            continue
        for id_, ids in zip(rows["id"], tokenize(tokenizer, rows["prompt"]), strict=True):
            if context is not None and len(ids) + new_tokens > context:
                raise UserError(
                    f"the prompt of row {id_} has {len(ids)} tokens, and with {new_tokens} new ones exceeds the "
                    f"model's context of {context}: leave it out, or lower max_new_tokens"
                )
