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
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState

from experts.outside.files import atomic_folder
from experts.text_to_lora.reconstruction import Reconstruction
from experts.text_to_lora.supervised import Supervised
from experts.text_to_lora.writer import TextToAdapter, write_network
from experts.training.callbacks import Diverged, StopOnInterrupt
from experts.training.folders import (
    at_work_in,
    check_folders,
    checkpoint_step,
    last_checkpoint,
    prepare_folders,
    remove_folder,
)
from experts.training.log import Log
from experts.training.objective import divide
from experts.training.processes import processes
from experts.training.progress import Progress
from experts.training.run import Interrupted

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


class Patience(TrainerCallback):
    """Stops without improvement. It looks at the log alone, and so a resumed run stops where a whole one does."""

    def __init__(self, log: Log, patience: int | None) -> None:
        self.log, self.patience = log, patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes().wait_for_everyone()  # the first one has written
        if out_of_patience(self.log, self.patience):
            control.should_training_stop = True


def validation_losses(log: Log) -> dict[int, float]:
    """Step → loss."""
    return {e["step"]: e["validation_loss"] for e in log.entries() if "validation_loss" in e}


def best_step(losses: Mapping[int, float]) -> int:
    """The step with the lowest loss, the earliest of equals. The untrained step 0 does not count."""
    return min((step for step in losses if step), key=lambda step: (losses[step], step))


def out_of_patience(log: Log, patience: int | None) -> bool:
    """Whether the last `patience` validations have brought no new best."""
    losses = validation_losses(log)
    if patience is None or max(losses, default=0) == 0:
        return False
    return sum(step > best_step(losses) for step in losses) >= patience


def check_network_run(
    options: Supervised | Reconstruction, output: Path, *, recipe: Mapping[str, Any], resume: bool = False
) -> None:
    """Finds what is wrong with a run before anything is loaded for it, and leaves nothing behind.

    Raises:
        UserError: as `check_folders` and `divide` do.
    """
    check_folders(output, recipe, resume=resume, replace=False)
    _step_size(options)


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
        UserError: as `check_network_run` does.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written to `output`.
    """
    check_network_run(options, output, recipe=recipe, resume=resume)
    with at_work_in(prepare_folders(output, recipe, resume=resume)) as unfinished:
        log = Log(unfinished / "training_log.jsonl")
        diverged = _train(
            writer, objective, train, validation, collate, options, log, resume=resume, callbacks=callbacks
        )
        validations = validation_losses(log)
        result = Result(
            output,
            sum(parameter.numel() for parameter in writer.network.parameters()),
            validations,
            best_step(validations),
            sum(entry.get("seconds", 0.0) for entry in log.entries()),
        )
        if processes().is_main_process:
            with atomic_folder(output) as folder:
                write_network(writer.network, folder)
                shutil.copyfile(log.path, folder / log.path.name)
                (folder / "README.md").write_text(_card(result, writer, recipe), encoding="utf-8")
            remove_folder(unfinished)
        processes().wait_for_everyone()
    writer.network.eval()
    if diverged:
        raise diverged
    return result


def _train(
    writer: TextToAdapter,
    objective: Objective,
    train: Dataset[Any],
    validation: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    options: Supervised | Reconstruction,
    log: Log,
    *,
    resume: bool,
    callbacks: Sequence[TrainerCallback],
) -> Diverged | None:
    """Leaves the writer with its best network; returns what stopped the run, if it was NaN."""
    unfinished = log.path.parent
    checkpoint = last_checkpoint(unfinished) if resume else None
    if resume:
        log.forget_after(checkpoint_step(checkpoint) if checkpoint else -1)
    progress = Progress(unfinished.stem)
    interrupt = StopOnInterrupt(progress)
    watchers = [NetworkLog(log, progress), Patience(log, options.patience), interrupt, *callbacks]
    trainer = NetworkTrainer(
        model=writer.network,
        args=_arguments(options, unfinished, next(writer.network.parameters()).device, begins=checkpoint is None),
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
        if checkpoint_step(checkpoint) < options.steps and not out_of_patience(log, options.patience):
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
    return diverged


def _step_size(options: Supervised | Reconstruction) -> tuple[int, int]:
    option = "tasks_per_step" if isinstance(options, Supervised) else "adapters_per_step"
    return divide(option, getattr(options, option), options.micro_batch_size)


def _arguments(
    options: Supervised | Reconstruction, folder: Path, device: torch.device, *, begins: bool
) -> TrainingArguments:
    micro_batch, accumulation = _step_size(options)
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
        eval_on_start=begins,
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
