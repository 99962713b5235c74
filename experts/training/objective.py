"""What training by any objective has in common: its options, the trainer's arguments, and how it can fail."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from experts.errors import UserError
from experts.processes import processes


class Objective(Protocol):
    """The options that every objective has, under these names."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def schedule(self) -> str: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def validation_size(self) -> int: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def report_to(self) -> str: ...


class Diverged(UserError):
    """The loss, or what is trained, stopped being a finite number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is no longer a finite number at step {step}; try a smaller learning rate")
        self.step = step


def check_learning_rate(learning_rate: float) -> None:
    """Raises UserError for what no optimiser can use."""
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise UserError(f"learning_rate must be a positive number, not {learning_rate}")


def trainer_arguments(
    options: Objective, base: PreTrainedModel, sequences: int, factors: str, folder: Path
) -> dict[str, Any]:
    """transformers' training arguments for one optimiser step on `sequences` sequences of all processes together.

    Args:
        factors: the options that `sequences` comes from, for the message.
        folder: where checkpoints go.

    Raises:
        UserError: if the batch does not divide over the processes and micro-batches, or the tracker is not installed.
    """
    if options.report_to != "none" and find_spec(options.report_to) is None:
        raise UserError(f"report_to: {options.report_to} is not installed; install it, or choose none")
    process_count = processes().num_processes
    micro_batch = min(options.micro_batch_size, sequences // process_count)
    accumulation, rest = divmod(sequences, micro_batch * process_count)
    if rest:
        raise UserError(
            f"{sequences} sequences a step do not divide into {process_count} × {micro_batch}: "
            f"choose {factors} as a multiple of processes × micro_batch_size"
        )
    return {
        "output_dir": str(folder),
        "max_steps": options.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.schedule,
        "max_grad_norm": options.max_grad_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "seed": options.seed,
        "report_to": options.report_to,
        "logging_steps": 1,
        "save_steps": options.validate_every,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "bf16": False,  # no autocast: the base computes in its own dtype
        "use_cpu": base.device.type == "cpu",
        "ddp_broadcast_buffers": False,  # the factors are constants, and large
        "ddp_find_unused_parameters": False,
    }
