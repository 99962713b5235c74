"""End-to-end training: the network's adapters are judged by the answers that the base gives under them.

One step (arXiv 2506.06105, section 3) draws one instance and one description of each of several tasks at random. The
network writes an adapter for every description, the base reads every instance under its own adapter, and the answers'
likelihood trains the network through the adapters.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.outside.errors import UserError, check_numbers
from experts.svf.fingerprint import fingerprint
from experts.text_to_lora.encoder import TaskEncoder, make_encoder
from experts.text_to_lora.examples import (
    Example,
    PromptStyle,
    Rounds,
    check_examples,
    make_example,
    pad_examples,
    token_losses,
)
from experts.text_to_lora.network import AdapterNetwork, LoraOutput, LowRank
from experts.text_to_lora.rows import adapted_rows, base_factors
from experts.text_to_lora.run import Learning, NetworkTraining, check_network_run, train_network
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.tasks import Task, Tasks
from experts.text_to_lora.writer import Base, Design, TextToAdapter
from experts.training.options import check_tokenizer
from experts.training.run import Result, Run


@dataclass(frozen=True, kw_only=True)
class Supervised(NetworkTraining):
    """How a network is trained on instances of tasks."""

    items_option: ClassVar[str] = "tasks_per_step"

    learning_rate: float = 2.5e-5
    tasks_per_step: int = 8
    """Instances in one optimiser step, each of a different task."""
    micro_batch_size: int = 8
    weight_decay: float = 0.01
    warmup: float = 0.2
    label_smoothing: float = 0.1
    neftune_alpha: float = 5.0
    """Noise on the token embeddings; 0 for none."""
    penalty: float = 1e-3
    """The weight of a penalty on the mean square of what the heads write."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    validation_instances: int = 8
    """Instances of each held-out task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = ("label_smoothing", "neftune_alpha", "penalty")
        check_numbers(self, least=[("validation_instances", 1), *((name, 0) for name in shares)])


def train_supervised(design: Design, base: Base, tasks: Tasks, options: Supervised, run: Run) -> Result:
    """Trains a network end to end on the training tasks, and writes it as it was best on the held-out tasks.

    Raises:
        UserError: for anything wrong with the tasks, the base, the encoder or the folders.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN, after writing the best network until then.
    """
    check_network_run(run, options)
    learned = tasks.learned()
    if not tasks.validation:
        raise UserError("no training task is held out to choose the best step: set data.validation_tasks to 1 or more")
    model, tokenizer = base.load()
    check_tokenizer(tokenizer)
    check_examples(model.config, tokenizer, options.prompt, [*learned, *tasks.validation])
    encoder = make_encoder(design.encoder, lambda: (model, tokenizer), trust_remote_code=design.trust_remote_code)
    torch.manual_seed(options.seed)
    writer = TextToAdapter.untrained(
        design.output,
        read_matrices(model, design.output.target_modules),
        encoder,
        base=base.name,
        fingerprint=fingerprint(model),
        **asdict(design.sizes),
    )
    writer.network.to(model.device)
    assert isinstance(tokenizer.pad_token_id, int)
    learning = Learning(
        AnswerLoss(model, writer.network, options),
        training_items(learned, tokenizer, encoder, options),
        validation_items(tasks.validation, tokenizer, encoder, options),
        Collator(tokenizer.pad_token_id),
        f"It learned from instances of {len(learned)} tasks, and {len(tasks.validation)} others chose the step.",
        length=lambda item: item.example.length,
    )
    return train_network(writer, learning, options, run)


@dataclass(frozen=True)
class Item:
    """One instance, and the embedding of one description of its task."""

    example: Example
    task: Tensor  # [E]


class Collator:
    """Items → a batch: what `pad_examples` gives, and the embedded descriptions `tasks` [B, E]."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        return {
            **pad_examples([item.example for item in items], self.pad),
            "tasks": torch.stack([item.task for item in items]),
        }


def training_items(
    tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, encoder: TaskEncoder, options: Supervised
) -> Rounds:
    """As many random items as the run needs, in rounds over all tasks."""
    embedded = [encoder(task.descriptions).cpu() for task in tasks]

    def draw(index: int, rng: random.Random) -> Item:
        task = tasks[index]
        instance = rng.choice(task.instances)
        chat = options.prompt.chat(task, instance)
        example = make_example(tokenizer, options.prompt, chat, rng.choice(instance.outputs))
        return Item(example, embedded[index][rng.randrange(len(task.descriptions))])

    return Rounds(len(tasks), options.steps * options.tasks_per_step, options.seed, draw)


def validation_items(
    tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, encoder: TaskEncoder, options: Supervised
) -> list[Item]:
    """The first instances of each task with its first description and output."""
    items = []
    for task in tasks:
        (embedded,) = encoder(task.descriptions[:1]).cpu()
        for instance in task.instances[: options.validation_instances]:
            chat = options.prompt.chat(task, instance)
            items.append(Item(make_example(tokenizer, options.prompt, chat, instance.outputs[0]), embedded))
    return items


class AnswerLoss:
    """The mean over rows of the mean cross-entropy of their answers, under the adapters that the network writes.

    The regularisers of the options are added in training, not in evaluation.
    """

    def __init__(self, base: PreTrainedModel, network: AdapterNetwork, options: Supervised) -> None:
        self.base = base.eval().requires_grad_(False)
        self.network = network
        self.options = options
        output = network.spec.output
        self.scaling = output.scaling if isinstance(output, LoraOutput) else 1.0
        self.factors = None if isinstance(output, LoraOutput) else base_factors(base, network)

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """`model` is the network, possibly wrapped for several processes."""
        options, training = self.options, model.training
        numbers = model(batch["tasks"])
        written = self.network.unpack(numbers)
        with adapted_rows(self.base, written, scaling=self.scaling, factors=self.factors):
            losses, _ = token_losses(
                self.base,
                batch,
                label_smoothing=options.label_smoothing if training else 0.0,
                neftune_alpha=options.neftune_alpha if training else 0.0,
            )
        loss = losses.mean()
        if training and options.penalty:
            loss = loss + options.penalty * _mean_square(written)
        return loss


def _mean_square(written: Mapping[str, Any]) -> Tensor:
    """The mean over matrices of the mean square of A and B, or of z − 1."""
    squares = [
        adapter.a.square().mean() + adapter.b.square().mean()
        if isinstance(adapter, LowRank)
        else (adapter - 1).square().mean()
        for adapter in written.values()
    ]
    return torch.stack(squares).mean()
