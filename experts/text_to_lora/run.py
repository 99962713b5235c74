"""A training run of a network, from the first step to a folder that `TextToAdapter.from_pretrained` reads.

While it runs, everything lives in `<output>.unfinished/` (the log and the last two checkpoints, among them the best).
`<output>/` appears when the network is complete, and not before.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from experts.errors import UserError
from experts.files import atomic_folder
from experts.text_to_lora.reconstruction import Reconstruction
from experts.text_to_lora.supervised import Supervised
from experts.text_to_lora.writer import TextToAdapter, write_network
from experts.training.callbacks import StopOnInterrupt
from experts.training.log import Log
from experts.training.objective import Diverged
from experts.training.progress import Progress
from experts.training.run import Interrupted, prepare_folders, unfinished_folder

Objective = Callable[[nn.Module, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    network: Path
    parameters: int
    validations: dict[int, float]
    """Step → validation loss. Step 0 is the untrained network: in supervised training, the base."""
    best_step: int
    train_seconds: float


class NetworkTrainer(Trainer):
    """transformers' trainer with the loss of an objective, items in their own order, and a stop at the first NaN."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        self.objective: Objective = objective
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        return self.objective(model, inputs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self._finite(self.objective(model, self._prepare_inputs(inputs))), None, None

    def _finite(self, loss: Tensor) -> Tensor:
        if not torch.isfinite(loss):
            raise Diverged(self.state.global_step + 1, "the loss")
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._finite(super().training_step(*args, **kwargs))

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class NetworkLog(TrainerCallback):
    """Carries figures to the log and the display."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step
        self.since = self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        step = state.global_step
        if "eval_loss" in logs:
            self.log.append(step=step, validation_loss=logs["eval_loss"])
            self.progress.say(f"step {step}/{state.max_steps}  validation {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            now = time.perf_counter()
            left = (now - self.began) / (step - self.first) * (state.max_steps - step)
            figures = {"loss": logs["loss"], "learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm")}
            self.log.append(step=step, **figures, seconds=round(now - self.since, 3))
            self.progress.say(f"step {step}/{state.max_steps}  loss {logs['loss']:.4f}  {left / 60:.0f} min left")
        self.since = time.perf_counter()


def train_network(
    writer: TextToAdapter,
    objective: Objective,
    train: Dataset[Any],
    validation: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    options: Supervised | Reconstruction,
    output: Path,
    *,
    recipe: Mapping[str, Any],
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Trains, keeps the network that was best in validation, writes it.

    Args:
        objective: the network (possibly wrapped) and a batch → the loss.
        train: one item for each instance of each step, in order.
        validation: the items that choose the best step.
        output: the network's folder; must not exist.
        recipe: what the model card says of where the network comes from.
        resume: go on from `<output>.unfinished/`, with the result of an uninterrupted run.

    Raises:
        UserError: if the output exists, cannot be written, or there is nothing to resume.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written to `output`.
    """
    unfinished = unfinished_folder(output)
    args = _arguments(options, unfinished, next(writer.network.parameters()).device, resume)
    prepare_folders(output, unfinished, recipe, resume=resume, replace=False)
    checkpoint = get_last_checkpoint(str(unfinished)) if resume else None
    done = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    log = Log(unfinished / "training_log.jsonl")
    if resume:
        log.forget_after(done if checkpoint else -1)

    progress = Progress(output.name)
    interrupt = StopOnInterrupt(progress)
    watchers: list[TrainerCallback] = [NetworkLog(log, progress), interrupt, *callbacks]
    if options.patience is not None:
        watchers.append(EarlyStoppingCallback(options.patience))
    trainer = NetworkTrainer(
        model=writer.network,
        args=args,
        train_dataset=train,
        eval_dataset=validation,  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=watchers,
        objective=objective,
    )
    trainer.remove_callback(PrinterCallback)
    diverged: Diverged | None = None
    try:
        # The Trainer would make one step more than it should after a checkpoint of the last step.
        if done < options.steps:
            trainer.train(resume_from_checkpoint=checkpoint)
        else:
            trainer.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
            trainer._load_best_model()
    except Diverged as error:
        if trainer.state.best_model_checkpoint is None:
            raise
        diverged = error
        trainer._load_best_model()
    if interrupt.requested:
        raise Interrupted(trainer.state.global_step)

    validations = {e["step"]: e["validation_loss"] for e in log.entries() if "validation_loss" in e}
    result = Result(
        output,
        sum(parameter.numel() for parameter in writer.network.parameters()),
        validations,
        min((step for step in validations if step), key=lambda step: (validations[step], step)),
        sum(entry.get("seconds", 0.0) for entry in log.entries()),
    )
    if PartialState().is_main_process:
        with atomic_folder(output) as folder:
            write_network(writer.network, folder)
            shutil.copyfile(log.path, folder / log.path.name)
            (folder / "README.md").write_text(_card(result, writer, recipe), encoding="utf-8")
        shutil.rmtree(unfinished)
    PartialState().wait_for_everyone()
    writer.network.eval()
    if diverged:
        raise diverged
    return result


def _arguments(
    options: Supervised | Reconstruction, folder: Path, device: torch.device, resume: bool
) -> TrainingArguments:
    together = options.tasks_per_step if isinstance(options, Supervised) else options.adapters_per_step
    processes = PartialState().num_processes
    micro_batch = min(options.micro_batch_size, together // processes)
    accumulation, rest = divmod(together, max(micro_batch, 1) * processes)
    if rest or not micro_batch:
        raise UserError(f"a step of {together} does not divide into {processes} processes × {micro_batch} at a time")
    every = min(options.validate_every, options.steps)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.schedule,
        warmup_steps=round(options.warmup * options.steps),
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=not resume,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=min(10, every),
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        bf16=False,  # the network stays in float32, the base in its own dtype
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        ddp_find_unused_parameters=False,
    )


def _card(result: Result, writer: TextToAdapter, recipe: Mapping[str, Any]) -> str:
    config = writer.network.spec
    validations = "\n".join(f"| {step} | {loss:.4f} |" for step, loss in result.validations.items())
    # A network that learned to write LoRAs back has not seen the base's weights.
    which = f" (fingerprint `{config.fingerprint}`)" if config.fingerprint else ""
    return f"""# {result.network.name}

A text-to-adapter network (arXiv 2506.06105): {result.parameters:,} parameters that write adapters for the base
`{config.base}`{which} and for no other, from descriptions read by `{config.encoder}`.
Trained for {result.train_seconds / 60:.1f} minutes; step {result.best_step} has the lowest validation loss.

| step | validation loss |
|---|---|
{validations}

## Use

```python
>>> from experts.text_to_lora import TextToAdapter
>>> writer = TextToAdapter.from_pretrained("path/to/{result.network.name}")
>>> writer.generate(["What the task is, in a sentence."])[0].write("path/to/adapter")
```

## Recipe

```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)}```
"""
