"""Trains a network, from the first step to a folder that `TextToAdapter.from_pretrained` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainerCallback, TrainingArguments

from experts.outside.errors import check_numbers
from experts.text_to_lora.network import AdapterNetwork
from experts.text_to_lora.writer import TextToAdapter, write_network
from experts.training.log import Progress, duration
from experts.training.options import TrainingOptions, check_decay_and_warmup, divide
from experts.training.passes import alike, apart_on
from experts.training.run import Result, Run
from experts.training.trainer import RunTrainer, trainer_arguments
from experts.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class NetworkTraining(TrainingOptions):
    """The options of every training of a network; defaults are the paper's."""

    items_option: ClassVar[str]
    """The name of the option that says how many items one step takes."""

    micro_batch_size: int
    """The most items in one forward and backward pass on one process; changes memory and speed, not the result."""
    weight_decay: float
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float
    """The share of the steps over which the learning rate rises."""
    validate_every: int = 100
    """Steps between validations; a checkpoint is written with each."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best; None never stops early."""
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay_and_warmup(self)
        counts = ("micro_batch_size", "validate_every", "patience", self.items_option)
        check_numbers(self, counts=counts)

    def arguments(self) -> dict[str, Any]:
        every = min(self.validate_every, self.steps)
        return {
            **super().arguments(),
            "weight_decay": self.weight_decay,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": round(self.warmup * self.steps),
            "save_steps": every,
            "save_total_limit": 2,
            "logging_steps": min(10, every),
            "ddp_find_unused_parameters": False,
        }


@dataclass(frozen=True)
class Learning:
    """What a network learns from, and its loss."""

    loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    """The network (possibly wrapped for several processes) and a batch → the loss."""
    train: Dataset[Any]
    """One item for each instance of each step, in order."""
    validation: Sequence[Any]
    """The items that choose the best step."""
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    about: str
    """What the network learns from, in sentences for its card."""
    length: Callable[[Any], int] = lambda item: 0
    """The tokens of an item that the base reads."""


@dataclass(frozen=True)
class Passes:
    """The items of one step on one process → a batch for each pass, with the `share` of the items that are in it.

    Items of about one length pass together: a short one beside a long one would be mostly padding. They keep their
    order, so that a step of a single pass draws the same random numbers as its items in one batch.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    length: Callable[[Any], int]
    device: torch.device
    at_most: int | None = None
    """Items in one pass; None sets no limit."""

    def __call__(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        groups = alike([self.length(item) for item in items], apart_on(self.device), self.at_most)
        own = [[items[row] for row in sorted(rows)] for rows in groups]
        return [{**self.collate(some), "share": len(some) / len(items)} for some in own]


class NetworkTrainer(RunTrainer):
    """A trainer with its own loss, the mean over items; it takes them in their given order, and a step in `Passes`."""

    def __init__(self, *args: Any, loss: Callable[[nn.Module, dict[str, Any]], Tensor], **kwargs: Any) -> None:
        self.loss = loss
        super().__init__(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Each pass ends with its gradient, so that only one is in memory; processes exchange gradients after the last.
        *first, last = inputs
        losses = []
        with self.accelerator.no_sync(model):
            for batch in first:
                losses.append(super().training_step(model, batch, *args, **kwargs))
        losses.append(super().training_step(model, last, *args, **kwargs))
        return torch.stack(losses).sum()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        return inputs["share"] * self.loss(model, inputs)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        passes: Any = self._prepare_inputs(inputs)
        with torch.no_grad():
            losses = [self.compute_loss(model, batch) for batch in passes]
        return self.finite(torch.stack(losses).sum()), None, None

    def validation_loss(self, model: nn.Module) -> float:
        """The mean loss over the validation items, which are divided over the processes."""
        output = self.evaluation_loop(self.get_eval_dataloader(), "validation", prediction_loss_only=True)
        assert output.metrics is not None
        return output.metrics["eval_loss"]

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class SaveNetwork(TrainerCallback):
    """Writes the network into each checkpoint, which can then be evaluated as any network, while the run goes on."""

    def __init__(self, network: AdapterNetwork) -> None:
        self.network = network

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            write_network(self.network, Path(args.output_dir) / f"checkpoint-{state.global_step}")


def check_network_run(run: Run, options: NetworkTraining) -> None:
    """Finds what is wrong with a run before anything is loaded, and leaves nothing behind.

    Raises:
        UserError: as `Run.check` and `divide` do.
    """
    run.check()
    _step_size(options)


def train_network(
    writer: TextToAdapter,
    learning: Learning,
    options: NetworkTraining,
    run: Run,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Trains a network, keeps it as it was best in validation, and writes it.

    Raises:
        UserError: as `check_network_run` does.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN, after writing the best network until then.
    """
    check_network_run(run, options)
    step, device = _step_size(options), next(writer.network.parameters()).device
    with run.at_work():
        trainer = NetworkTrainer(
            model=writer.network,
            args=TrainingArguments(
                **trainer_arguments(options, step, device, run.folder), per_device_eval_batch_size=step[0]
            ),
            train_dataset=learning.train,
            eval_dataset=learning.validation,  # type: ignore[arg-type]
            data_collator=Passes(learning.collate, learning.length, device, options.micro_batch_size),
            callbacks=[SaveNetwork(writer.network), *callbacks],
            loss=learning.loss,
        )
        validation = Validation(trainer.validation_loss, "lower", options.validate_every, options.patience)
        result = run.train(trainer, Progress(run.output.name), validation)
        writer.network.eval()

        def write(folder: Path) -> None:
            write_network(writer.network, folder)
            (folder / "README.md").write_text(_card(result, writer, learning.about, run.recipe), encoding="utf-8")

        run.finish(result, write)
    return result


def _step_size(options: NetworkTraining) -> tuple[int, int]:
    """As `divide` gives it; a process takes its share of a step at once."""
    items = getattr(options, options.items_option)
    return divide(options.items_option, items, items)


def _card(result: Result, writer: TextToAdapter, about: str, recipe: Mapping[str, Any]) -> str:
    config = writer.network.spec
    validations = "\n".join(f"| {step} | {loss:.4f} |" for step, loss in result.validations.items())
    # A network that learned to reconstruct LoRAs has not seen the base's weights.
    which = f" (fingerprint `{config.fingerprint}`)" if config.fingerprint else ""
    return f"""# {result.folder.name}

A text-to-adapter network (arXiv 2506.06105): {result.parameters:,} parameters that write adapters for the base
`{config.base}`{which} and for no other, from descriptions read by `{config.encoder}`.
{about}
Trained for {duration(result.train_seconds)}; step {result.best_step} has the lowest validation loss.

| step | validation loss |
|---|---|
{validations}

## Use

```python
>>> from experts.text_to_lora import TextToAdapter
>>> writer = TextToAdapter.from_pretrained("path/to/{result.folder.name}")
>>> writer.generate(["What the task is, in a sentence."])[0].write("path/to/adapter")
```

## Recipe

```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)}```
"""
