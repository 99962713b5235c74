"""What every trainer here has: its arguments, a base that may be sharded, and the callbacks that stop it."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from experts.outside.errors import UserError
from experts.training.log import Progress
from experts.training.options import TrainingOptions
from experts.training.processes import shard


@dataclass(frozen=True)
class LoadedBase:
    """A base to train on. It gets the adapter; its own weights do not change."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Its name on a model card."""
    shard: bool = False
    """Whether every process keeps only a shard of it; it may be on the CPU until then."""


def trainer_arguments(
    options: TrainingOptions, step: tuple[int, int], device: torch.device, folder: Path
) -> dict[str, Any]:
    """transformers' training arguments, or TRL's, except those of one trainer only.

    Args:
        step: as `divide` gives it.
        device: the base's device.
        folder: where checkpoints go.
    """
    micro_batch, accumulation = step
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "bf16": False,  # no autocast: the base computes in its own dtype, trained parameters are float32
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "ddp_broadcast_buffers": False,  # SVF's factors are constants, and large
        **options.arguments(),
    }


class Diverged(UserError):
    """The loss or a trained parameter is no longer finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is no longer a finite number at step {step}; try a smaller learning rate")
        self.step = step


class StopAtNaN(TrainerCallback):
    """Checks the trained parameters after every optimiser step, before anything is validated or saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            raise Diverged(state.global_step, "what is trained")


class RunTrainer(Trainer):
    """transformers' trainer as a run needs it, and a mixin that makes TRL's trainers such.

    Raises:
        Diverged: at the first NaN, from any step.
    """

    def __init__(self, *args: Any, shard_base: bool = False, **kwargs: Any) -> None:
        self.shard_base = shard_base
        super().__init__(*args, **kwargs)
        self.add_callback(StopAtNaN())

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.shard_base:
            shard(model)
        else:
            super()._move_model_to_device(model, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return self.finite(super().training_step(*args, **kwargs))
        except RuntimeError as error:  # sampling from something that is not a distribution
            if "probability tensor" in str(error):
                raise Diverged(self.state.global_step + 1, "the model's distribution") from error
            raise

    def trained_parameters(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in cast(Any, self.model).parameters() if p.requires_grad)

    def finite(self, loss: Tensor) -> Tensor:
        """The loss itself; raises Diverged if it is not finite."""
        if not torch.isfinite(loss):
            raise Diverged(self.state.global_step + 1, "the loss")
        return loss


class StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C or SIGTERM lets the step finish and writes a checkpoint; the second stops at once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.requested = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {each: signal.signal(each, self._request) for each in (signal.SIGINT, signal.SIGTERM)}

    def _request(self, *_: Any) -> None:
        self.requested = True
        self.progress.say("finishing this step, then stopping; press Ctrl-C again to stop at once")
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._restore()
