"""Adapters trained on the instances of tasks: one a task, for reconstruction and as the oracle, or one for all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from experts.errors import UserError
from experts.expert import PREFIX, SUFFIX, Expert
from experts.files import atomic_folder, check_writable
from experts.fingerprint import fingerprint
from experts.svf import SVFConfig, SVFModel
from experts.text_to_lora.examples import Example, PromptStyle, Rounds, make_example, pad_examples, token_losses
from experts.text_to_lora.network import Lora, Svf
from experts.text_to_lora.run import NetworkTrainer
from experts.text_to_lora.tasks import Task, Tasks
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
        if min(self.steps, self.instances_per_step) < 1:
            raise UserError("steps and instances_per_step must be at least 1")


def adapter_config(output: Lora | Svf) -> PeftConfig:
    """The PEFT method that trains what a network of this output writes."""
    if isinstance(output, Svf):
        return SVFConfig(target_modules=output.target_modules, rank=output.rank, task_type="CAUSAL_LM")
    return LoraConfig(
        target_modules=output.target_modules,
        r=output.rank,
        lora_alpha=output.alpha,  # type: ignore[arg-type]
        use_rslora=output.rslora,
        task_type="CAUSAL_LM",
    )


def train_adapters(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    output: Lora | Svf,
    options: TaskAdapters,
    folder: Path,
    *,
    base_name: str,
) -> list[Path]:
    """Trains the adapters that the options ask for and writes each when it is finished; those there already stay.

    Returns:
        `folder/<task>` for every task, or `folder` where there is one for all.

    Raises:
        UserError: if a task has no instances beyond those left out, or the folder cannot be written.
    """
    chosen = {"train": tasks.train, "validation": tasks.validation, "test": tasks.test}[options.split]
    for task in chosen:
        if len(task.instances) <= options.leave_out:
            raise UserError(f"{task.name} has {len(task.instances)} instances, all of them left out: lower leave_out")
    if not chosen:
        raise UserError(f"there are no {options.split} tasks")
    check_writable(folder.parent if options.one_for_all else folder)
    progress = Progress(folder.name)
    identity = fingerprint(base)
    runs = [(folder, chosen)] if options.one_for_all else [(folder / task.name, [task]) for task in chosen]
    for number, (path, own) in enumerate(runs, 1):
        if path.exists():
            progress.say(f"{number}/{len(runs)}  {path.name} is there already")
            continue
        model, loss = _train(base, tokenizer, own, output, options, path)
        if PartialState().is_main_process:
            description = own[0].descriptions[0] if len(own) == 1 else "Instances of many tasks."
            _write(model, output, path, description, base_name, identity)
        model.unload()
        progress.say(f"{number}/{len(runs)}  {path.name}: loss {loss:.3f}")
    return [path for path, _ in runs]


def _train(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    output: Lora | Svf,
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
    scratch = path.with_name(f".{path.name}.trainer")
    trainer = NetworkTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(scratch),
            max_steps=options.steps,
            per_device_train_batch_size=max(options.instances_per_step // PartialState().num_processes, 1),
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay if isinstance(output, Lora) else 0.0,
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


def _write(model: Any, output: Lora | Svf, path: Path, description: str, base_name: str, identity: str) -> None:
    if isinstance(output, Svf):
        assert isinstance(model.base_model, SVFModel)
        z = {
            name.removeprefix(PREFIX).removesuffix(f"{SUFFIX}.default"): parameter.detach().cpu()
            for name, parameter in model.named_parameters()
            if name.endswith(f"{SUFFIX}.default")
        }
        Expert(z, base_name, identity, description).write(path)
        return
    model.peft_config["default"].base_model_name_or_path = base_name
    with atomic_folder(path) as temporary:
        # The embeddings are never adapted; PEFT would ask the hub about their size.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        card = f"# {path.name}\n\n{description}\n\nA LoRA for the base `{base_name}`.\n"
        (temporary / "README.md").write_text(card, encoding="utf-8")
