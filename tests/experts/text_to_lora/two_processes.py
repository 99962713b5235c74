"""What each process of `test_processes.py` runs: the training of a network, with a look at what is in each batch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.network import LoraOutput
from experts.text_to_lora.run import Learning, train_network
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.supervised import AnswerLoss, Collator, Supervised, training_items, validation_items
from experts.text_to_lora.tasks import Instance, Task
from experts.text_to_lora.writer import TextToAdapter
from experts.training import passes
from experts.training.processes import processes
from experts.training.run import Run

OPTIONS = Supervised(
    steps=3,
    learning_rate=1e-3,
    tasks_per_step=4,
    validate_every=3,
    validation_instances=1,
    neftune_alpha=0.0,  # noise would be another in each process
    prompt=PromptStyle(with_definition=False, max_prompt_tokens=96, max_answer_tokens=8),
)


class Late(TrainerCallback):
    """The second process ends its training after the first, which must not tidy up until then."""

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        time.sleep(2 * processes().process_index)


def task(letter: str) -> Task:
    instances = tuple(Instance(f"{letter}{i}", f"input {i}" + " and so on" * i, (letter * 3,)) for i in range(8))
    return Task(letter, "train", f"Write {letter * 5}.", instances, descriptions=(f"Write {letter * 5}.",))


def train(base: Any, tokenizer: Any, encoder: Any, output: Path) -> tuple[list[int], dict[str, torch.Tensor]]:
    """How many tasks each pass of the training had, and the network as it came out."""
    written = LoraOutput(size="S")
    torch.manual_seed(0)
    writer = TextToAdapter.untrained(
        written, read_matrices(base.config, written.target_modules), encoder, latent_size=16, head_size=12, dropout=0.0
    )
    loss = AnswerLoss(base, writer.network, OPTIONS)
    tasks: list[int] = []

    def counted(model: Any, batch: Any) -> torch.Tensor:
        if model.training:
            tasks.append(len(batch["tasks"]))
        return loss(model, batch)

    train_network(
        writer,
        Learning(
            counted,
            training_items([task(letter) for letter in "abcdef"], tokenizer, encoder, OPTIONS),
            validation_items([task(letter) for letter in "gh"], tokenizer, encoder, OPTIONS),
            Collator(tokenizer.pad_token_id),
            "It learned letters.",
            length=lambda item: item.example.length,
        ),
        OPTIONS,
        Run(output, {"name": "letters"}),
        callbacks=[Late()],
    )
    return tasks, {name: p.detach().contiguous() for name, p in writer.network.named_parameters()}


def main(folder: Path, checkpoint: str) -> None:
    from conftest import LetterEncoder  # beside this script

    from selfadapt import load_base

    processes()
    passes.APART["cpu"] = 25  # several passes in a step, and not as many in either process
    tasks, network = train(*load_base(checkpoint), LetterEncoder(), folder / "together")
    rank = processes().process_index
    save_file(network, folder / f"network-{rank}.safetensors")
    (folder / f"tasks-{rank}.json").write_text(json.dumps(tasks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
