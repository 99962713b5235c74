"""Adapters trained on the instances of tasks: one a task, for reconstruction and as the oracle, or one for all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from experts.expert import PREFIX, SUFFIX, Expert
from experts.outside.errors import UserError, check_numbers
from experts.outside.files import atomic_folder, check_new_folder, check_writable
from experts.svf import SVFConfig, SVFModel
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
from experts.text_to_lora.run import NetworkTrainer
from experts.text_to_lora.tasks import Task, Tasks
from experts.training.objective import check_schedule, check_tokenizer, divide
from experts.training.processes import processes
from experts.training.progress import Progress


@dataclass(frozen=True)
class TaskAdapters:
    """How adapters are trained on the instances of tasks."""

    steps: int
    """Optimiser steps of each adapter."""
    learning_rate: float = 8e-5
    one_for_all: bool = False
    """A single adapter for all tasks (the paper's multi-task LoRA) in place of one for each."""
    split: Literal["train", "validation", "test"] = "train"
    """Whose tasks; adapters of test tasks are oracles, never rivals."""
    instances_per_step: int = 8
    leave_out: int = 20
    """The first instances of each task are not trained on: they are for evaluation."""
    weight_decay: float = 0.01
    """Of LoRAs; an expert's z would be pulled towards 0, and not towards the base."""
    warmup: float = 0.1
    """The share of the steps over which the learning rate rises; then it falls linearly."""
    max_grad_norm: float = 1.0
    prompt: PromptStyle = field(default_factory=PromptStyle)
    seed: int = 42
    """Also of A, so that the LoRAs of a library begin at the same place."""

    def __post_init__(self) -> None:
        check_schedule(self)
        check_numbers(self, least=[("instances_per_step", 1), ("leave_out", 0)])


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
            else, or cannot be written; or if a step does not divide over the processes.
    """
    divide("instances_per_step", options.instances_per_step, options.instances_per_step)
    chosen = {"train": tasks.train, "validation": tasks.validation, "test": tasks.test}[options.split]
    for task in chosen:
        if len(task.instances) <= options.leave_out:
            raise UserError(f"{task.name} has {len(task.instances)} instances, all of them left out: lower leave_out")
    if not chosen:
        raise UserError(f"there are no {options.split} tasks")
    runs = [(folder, chosen)] if options.one_for_all else [(folder / task.name, [task]) for task in chosen]
    for path, _ in runs:
        if path.exists() and not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} is there already, and no adapter; choose another --output")
    check_new_folder(folder)
    return runs


def train_adapters(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    output: LoraOutput | SvfOutput,
    options: TaskAdapters,
    folder: Path,
    *,
    base_name: str,
) -> list[Path]:
    """Trains the adapters that the options ask for and writes each when it is finished; those there already stay.

    Returns:
        `folder/<task>` for every task, or `folder` where there is one for all.

    Raises:
        UserError: as `check_adapters`, `check_tokenizer` and `check_examples` do.
    """
    runs = check_adapters(tasks, options, folder)
    check_tokenizer(tokenizer)
    check_examples(base.config, tokenizer, options.prompt, [task for _, own in runs for task in own])
    check_writable(folder.parent if options.one_for_all else folder)
    progress = Progress(folder.name)
    identity = fingerprint(base)
    for number, (path, own) in enumerate(runs, 1):
        if path.exists():
            progress.say(f"{number}/{len(runs)}  {path.name} is there already")
            continue
        model, loss = _train(base, tokenizer, own, output, options, path)
        if processes().is_main_process:
            description = own[0].descriptions[0] if len(own) == 1 else "Instances of many tasks."
            _write(model, output, path, description, base_name, identity)
        processes().wait_for_everyone()
        model.unload()
        progress.say(f"{number}/{len(runs)}  {path.name}: loss {loss:.3f}")
    return [path for path, _ in runs]


def _train(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    output: LoraOutput | SvfOutput,
    options: TaskAdapters,
    path: Path,
) -> tuple[Any, float]:
    """The trained PEFT model and the mean loss of the run."""

    def draw(index: int, chance: random.Random) -> Example:
        task = tasks[index]
        instance = chance.choice(task.instances[options.leave_out :])
        chat = options.prompt.chat(task, instance)
        return make_example(tokenizer, options.prompt, chat, chance.choice(instance.outputs))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return token_losses(model, batch)[0].mean()

    torch.manual_seed(options.seed)
    model = get_peft_model(base, adapter_config(output))
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    of_step = options.instances_per_step
    scratch = path.with_name(f".{path.name}.trainer")
    trainer = NetworkTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(scratch),
            max_steps=options.steps,
            per_device_train_batch_size=divide("instances_per_step", of_step, of_step)[0],
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay if isinstance(output, LoraOutput) else 0.0,
            warmup_steps=round(options.warmup * options.steps),
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            bf16=False,
            use_cpu=base.device.type == "cpu",
            dataloader_pin_memory=base.device.type != "cpu",
            ddp_broadcast_buffers=False,
        ),
        train_dataset=Rounds(len(tasks), options.steps * options.instances_per_step, options.seed, draw),
        data_collator=lambda examples: pad_examples(examples, pad),
        objective=loss,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        mean = trainer.train().training_loss
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    model.eval()
    return model, mean


def _write(
    model: Any, output: LoraOutput | SvfOutput, path: Path, description: str, base_name: str, identity: str
) -> None:
    if isinstance(output, SvfOutput):
        assert isinstance(model.base_model, SVFModel)
        z = {
            name.removeprefix(PREFIX).removesuffix(f"{SUFFIX}.default"): parameter.detach().cpu()
            for name, parameter in model.named_parameters()
            if name.endswith(f"{SUFFIX}.default")
        }
        Expert(z, base_name, identity, description, sketch=sketch(model)).write(path)
        return
    model.peft_config["default"].base_model_name_or_path = base_name
    with atomic_folder(path) as temporary:
        # The embeddings are never adapted; PEFT would ask the hub about their size.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        card = f"# {path.name}\n\n{description}\n\nA LoRA for the base `{base_name}`.\n"
        (temporary / "README.md").write_text(card, encoding="utf-8")
