"""What happens between the steps of a run: the check for NaN, validation, the log, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, TrainerCallback

from experts.domains.base import Domain
from experts.training.evaluation import held_out_scores
from experts.training.log import Log, out_of_patience
from experts.training.objective import Diverged, Objective
from experts.training.processes import processes
from experts.training.progress import Progress
from experts.training.statistics import accuracy


def validated_path(folder: Path, step: int) -> Path:
    """Where the expert that was validated at a step is kept until the run ends."""
    return folder / f"validated-{step}.safetensors"


class StopAtNaN(TrainerCallback):
    """Looks at what is trained after every optimiser step, before anything is validated or saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            raise Diverged(state.global_step, "the expert")


class Validation(TrainerCallback):
    """Every N steps: greedy answers on held-out prompts, the expert kept, and a stop when it no longer improves."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        domain: Domain,
        rows: Dataset,
        options: Objective,
        log: Log,
        progress: Progress,
    ) -> None:
        self.tokenizer, self.domain, self.rows = tokenizer, domain, rows
        self.options, self.log, self.progress = options, log, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.validate(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.options.validate_every and state.global_step < self.options.steps:
            return
        self.validate(state.global_step, model)
        if out_of_patience(self.log.validations(), self.options.patience):
            control.should_save = control.should_training_stop = True

    def validate(self, step: int, model: PeftModel) -> None:
        scores = held_out_scores(
            model, self.tokenizer, self.domain, self.rows, max_new_tokens=self.options.max_new_tokens
        )
        state = processes()
        if state.is_main_process:
            result = accuracy(scores)
            save_file(get_peft_model_state_dict(model), validated_path(self.log.path.parent, step))
            self.log.append(step=step, right=result.right, n=result.n)
            self.progress.validated(step, result)
        state.wait_for_everyone()


# What a trainer logs of a step → its name in our log.
REINFORCE_FIGURES = {
    "reward": "reward",
    "accuracy": "accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "kl": "kl",
}
NEXT_TOKEN_FIGURES = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}


class StepLog(TrainerCallback):
    """Carries each step's figures to the log and the display."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress
        self.tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens = state.num_input_tokens_seen
        self.progress.begin(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "step_time" not in logs:
            return
        figures = REINFORCE_FIGURES if "reward" in logs else NEXT_TOKEN_FIGURES
        seconds = logs["step_time"]
        entry = {
            "step": state.global_step,
            **{name: logs[key] for key, name in figures.items() if key in logs},
            "tokens_per_second": (logs["num_tokens"] - self.tokens) / seconds,
            "seconds": seconds,
        }
        self.tokens = logs["num_tokens"]
        self.log.append(**{key: round(v, 6) if isinstance(v, float) else v for key, v in entry.items()})
        self.progress.stepped(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.end()


class StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C lets the step finish and writes a checkpoint; the second one stops at once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.requested = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = signal.signal(signal.SIGINT, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True
        self.progress.say("finishing this step, then stopping; press Ctrl-C again to stop at once")
        signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
