"""End-to-end training: the network's adapters are as good as the answers that the base gives under them.

One step (arXiv 2506.06105, section 3): several tasks, of each one instance and one of its descriptions, both drawn at
random; the network writes an adapter for every description, the base reads every instance under its own, and the
answers' likelihood trains the network through the adapters.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import check_numbers
from experts.svf.decomposition import Factors, decompose, each_matrix
from experts.text_to_lora.encoder import TaskEncoder
from experts.text_to_lora.examples import Example, PromptStyle, Rounds, make_example, pad_examples, token_losses
from experts.text_to_lora.network import AdapterNetwork, LoraOutput, LowRank
from experts.text_to_lora.rows import adapted_rows
from experts.text_to_lora.tasks import Task
from experts.training.objective import check_schedule


@dataclass(frozen=True)
class Supervised:
    """How a network is trained on instances of tasks. What has a default has the paper's."""

    steps: int
    """Optimiser steps."""
    learning_rate: float = 2.5e-5
    tasks_per_step: int = 8
    """Instances of one optimiser step, each of another task."""
    micro_batch_size: int = 8
    """Instances of one forward and backward pass on one process; changes memory and speed, not the result."""
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float = 0.2
    """The share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.1
    neftune_alpha: float = 5.0
    """Noise on the token embeddings; 0 for none."""
    penalty: float = 1e-3
    """On the mean square of what the heads write."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    validate_every: int = 100
    """Steps between validations on the held-out tasks; a checkpoint is written with each."""
    validation_instances: int = 8
    """Of each held-out task."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best; None never stops early."""
    seed: int = 42

    def __post_init__(self) -> None:
        check_schedule(self)
        counts = ("tasks_per_step", "micro_batch_size", "validate_every", "validation_instances", "patience")
        shares = ("label_smoothing", "neftune_alpha", "penalty")
        check_numbers(self, least=[*((name, 1) for name in counts), *((name, 0) for name in shares)])


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
    """As many random items as the run needs, a round of all tasks after the other."""
    embedded = [encoder(task.descriptions).cpu() for task in tasks]

    def draw(index: int, chance: random.Random) -> Item:
        task = tasks[index]
        instance = chance.choice(task.instances)
        chat = options.prompt.chat(task, instance)
        example = make_example(tokenizer, options.prompt, chat, chance.choice(instance.outputs))
        return Item(example, embedded[index][chance.randrange(len(task.descriptions))])

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

    In training with the regularisers of the options, in evaluation without.
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


def base_factors(base: nn.Module, network: AdapterNetwork) -> dict[str, Factors]:
    """U, s and Vᵀ of the matrices that a network writes z for; seconds where they are not in the cache."""
    rank = getattr(network.spec.output, "rank", None)
    weights: dict[str, Tensor] = {}
    for matrix in network.spec.matrices:
        module: Any = base.get_submodule(matrix.name)
        weights[matrix.name] = module.weight.T if isinstance(module, Conv1D) else module.weight
    device = next(iter(weights.values())).device
    factors = each_matrix(lambda weight: decompose(weight, rank), list(weights.values()), device)
    return dict(zip(weights, factors, strict=True))
