"""Adapters trained on the instances of tasks: one per task, for reconstruction and as the oracle, or one for all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from experts.outside.errors import UserError, check_numbers
from experts.outside.files import check_new_folder
from experts.svf import SVFConfig
from experts.svf.fingerprint import fingerprint, sketch
from experts.text_to_lora.examples import (
    Example,
    PromptStyle,
    Rounds,
    check_examples,
    make_example,
    pad_examples,
    token_losses,
)
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.run import NetworkTrainer, Passes
from experts.text_to_lora.tasks import Task, Tasks
from experts.text_to_lora.writer import Base
from experts.training.card import Origin, write_trained
from experts.training.log import Progress
from experts.training.options import TrainingOptions, check_decay_and_warmup, check_tokenizer, divide
from experts.training.processes import processes
from experts.training.run import Run, remove_folder, unfinished_folder
from experts.training.trainer import trainer_arguments

SAVE_EVERY = 100
"""Steps between checkpoints, and between lines of the log."""


@dataclass(frozen=True, kw_only=True)
class TaskAdapters(TrainingOptions):
    """How adapters are trained on the instances of tasks."""

    learning_rate: float = 8e-5
    one_for_all: bool = False
    """A single adapter for all tasks (the paper's multi-task LoRA) in place of one for each."""
    split: Literal["train", "validation", "test"] = "train"
    """The split whose tasks are used; adapters for test tasks are oracles, never baselines."""
    instances_per_step: int = 8
    leave_out: int = 20
    """So many first instances of each task are not trained on: they are for evaluation."""
    weight_decay: float = 0.01
    """For LoRAs only; it would pull an expert's z towards 0 instead of towards the base."""
    warmup: float = 0.1
    """The share of the steps over which the learning rate rises; then it falls linearly."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    seed: int = 42
    """The seed, also of A, so that the LoRAs of a library start at the same place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay_and_warmup(self)
        check_numbers(self, least=[("leave_out", 0)], counts=["instances_per_step"])

    def arguments(self) -> dict[str, Any]:
        return {
            **super().arguments(),
            "warmup_steps": round(self.warmup * self.steps),
            # Few adapters of a library take as many steps; one for all does.
            "save_steps": SAVE_EVERY,
            "save_total_limit": 2,
            "logging_steps": min(self.steps, SAVE_EVERY),
        }

    def step_size(self) -> tuple[int, int]:
        """As `divide` gives it; a process takes its share of a step at once."""
        return divide("instances_per_step", self.instances_per_step, self.instances_per_step)


def adapter_config(output: LoraOutput | SvfOutput) -> PeftConfig:
    """The PEFT method that trains what a network of this output writes."""
    if isinstance(output, SvfOutput):
        return SVFConfig(target_modules=output.target_modules, rank=output.rank, task_type="CAUSAL_LM")
    return LoraConfig(
        target_modules=output.target_modules,
        r=output.rank,
        lora_alpha=output.alpha,  # type: ignore[arg-type]
        use_rslora=output.rslora,
        task_type="CAUSAL_LM",
    )


def check_adapters(tasks: Tasks, options: TaskAdapters, folder: Path) -> list[tuple[Path, list[Task]]]:
    """Finds what is wrong with a run before its base is loaded, and leaves nothing behind.

    Returns:
        Where each adapter goes, and the tasks that it learns.

    Raises:
        UserError: if there are no tasks, or one has no instances beyond those left out; if the folder holds something
            else or cannot be written; or if a step does not divide over the processes.
    """
    options.step_size()
    chosen = tasks.learned() if options.split == "train" else getattr(tasks, options.split)
    for task in chosen:
        if len(task.instances) <= options.leave_out:
            raise UserError(f"{task.name} has {len(task.instances)} instances, all of them left out: lower leave_out")
    if not chosen:
        raise UserError(f"there are no {options.split} tasks")
    runs = [(folder, chosen)] if options.one_for_all else [(folder / task.name, [task]) for task in chosen]
    for path, _ in runs:
        if path.exists() and not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} exists already and is not an adapter; choose another folder")
    check_new_folder(folder)
    return runs


def train_adapters(
    base: Base, tasks: Tasks, output: LoraOutput | SvfOutput, options: TaskAdapters, folder: Path
) -> list[Path]:
    """Trains the adapters that the options ask for and writes each when it is finished.

    Adapters that exist already stay, and one that was interrupted is resumed.

    Returns:
        `folder/<task>` for every task, or `folder` if there is one adapter for all.

    Raises:
        UserError: as `check_adapters`, `check_tokenizer`, `check_examples` and `Run.check` do.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN.
    """
    adapters = check_adapters(tasks, options, folder)
    model, tokenizer = base.load()
    check_tokenizer(tokenizer)
    check_examples(model.config, tokenizer, options.prompt, [task for _, own in adapters for task in own])
    identity, base_sketch = fingerprint(model), sketch(model)
    recipe = {"model": base.name, "output": asdict(output), "training": asdict(options)}
    for number, (path, own) in enumerate(adapters, 1):
        progress = Progress(f"{number}/{len(adapters)}  {path.name}")
        if path.exists():
            if processes().is_main_process:
                remove_folder(unfinished_folder(path))  # left by a run that was killed just before doing this
            progress.say(f"{progress.title} exists already")
            continue
        run = Run(path, recipe, resume=unfinished_folder(path).exists())
        description = own[0].descriptions[0] if len(own) == 1 else "Instances of many tasks."
        origin = Origin(base.name, identity, base_sketch, description)
        with run.at_work():
            trainer = _trainer(model, tokenizer, own, output, options, run.folder)
            result = run.train(trainer, progress)
            adapted: Any = trainer.model
            card = _card(path.name, origin, output)
            run.finish(result, partial(write_trained, model=adapted, origin=origin, card=card))
        adapted.unload()
    return [path for path, _ in adapters]


def _card(name: str, origin: Origin, output: LoraOutput | SvfOutput) -> str:
    what = (
        f"For the base `{origin.base}` (`{origin.fingerprint}`)."
        if isinstance(output, SvfOutput)
        else f"A LoRA for the base `{origin.base}`."
    )
    return f"# {name}\n\n{origin.description}\n\n{what}\n"


def _trainer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    output: LoraOutput | SvfOutput,
    options: TaskAdapters,
    folder: Path,
) -> NetworkTrainer:
    """A trainer for a new adapter, which the base carries from here on."""

    def draw(index: int, rng: random.Random) -> Example:
        task = tasks[index]
        instance = rng.choice(task.instances[options.leave_out :])
        chat = options.prompt.chat(task, instance)
        return make_example(tokenizer, options.prompt, chat, rng.choice(instance.outputs))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return token_losses(model, batch)[0].mean()

    torch.manual_seed(options.seed)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return NetworkTrainer(
        model=get_peft_model(base, adapter_config(output)),
        args=TrainingArguments(
            **trainer_arguments(options, options.step_size(), base.device, folder),
            weight_decay=options.weight_decay if isinstance(output, LoraOutput) else 0.0,
        ),
        train_dataset=Rounds(len(tasks), options.steps * options.instances_per_step, options.seed, draw),
        data_collator=Passes(lambda examples: pad_examples(examples, pad), lambda own: own.length, base.device),
        loss=loss,
    )
