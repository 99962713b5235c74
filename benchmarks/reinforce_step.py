"""A whole REINFORCE step (sampling, reward, gradient, optimiser) of ours against stock TRL with a PEFT LoRA.

python benchmarks/reinforce_step.py [--recipe smollm2-135m/stories] [--model NAME] [--rounds 3]

Stock TRL is its RLOOTrainer with a LoRA of rank 16 on the query and value projections; prompts, samples, lengths,
temperature, micro-batches, reward and dtype are the recipe's for both. Each trainer has its own base, and each step is
a training of its own. Beside the ratio is the share of the processor's peak (model FLOPs utilisation): the least that a
step must multiply, over what a large product of the same dtype reaches in the same run. The least is 2 × parameters for
every token that passes: a sampled token passes three times (sampled, forwards, backwards to the inputs alone), a
prompt's token three times, without the head.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sidebyside import side_by_side
from trainers import stock
from transformers.trainer_callback import PrinterCallback

from experts.domains.base import load_rows
from experts.outside.chats import tokenize
from experts.training.reinforce import Reinforce
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import make_trainer
from selfadapt import load_base
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import read_recipe

STOCK, OURS = "stock TRL, LoRA r=16", "ours, the recipe's expert"


def peak(dtype: torch.dtype) -> float:
    """Multiplications and additions per second in the largest product that a step might have."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def parameters(trainer: Any) -> tuple[int, int]:
    """The base's parameters: those that every token passes, and the head's."""
    base = trainer.model.get_base_model()
    layers = sum(module.weight.numel() for module in base.modules() if isinstance(module, torch.nn.Linear))
    head = base.get_output_embeddings().weight.numel()
    return layers - head, head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2-135m/stories")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    choice = parser.parse_args()
    recipe = read_recipe(find_recipe(choice.recipe))
    assert isinstance(recipe.training, Reinforce)
    options = replace(recipe.training, steps=1, seed=0)
    name = choice.model or recipe.model
    prompts, samples = options.prompts_per_step, options.samples_per_prompt
    with TemporaryDirectory() as folder:
        bases = [LoadedBase(*load_base(name, dtype=recipe.dtype), name) for _ in range(2)]
        domain, folders = recipe.domain, (Path(folder, "stock"), Path(folder, "ours"))
        trainers: dict[str, Any] = {
            STOCK: stock(bases[0], domain, options, folders[0]),
            OURS: make_trainer(bases[1], domain, recipe.adapt.config(), options, folders[1]),
        }
        for trainer in trainers.values():
            trainer.remove_callback(PrinterCallback)
        steps: dict[str, list[tuple[float, float]]] = {each: [] for each in trainers}  # tokens per sample, seconds

        def step(each: str) -> None:
            start = time.perf_counter()
            trainers[each].train()
            logged = next(log for log in trainers[each].state.log_history if "completions/mean_length" in log)
            steps[each].append((logged["completions/mean_length"], time.perf_counter() - start))

        side_by_side(
            f"a step of {prompts} × {samples} samples",
            {each: partial(step, each) for each in trainers},
            against=STOCK,
            rounds=choice.rounds,
        )
        body, head = parameters(trainers[STOCK])
        tokenizer = trainers[STOCK].processing_class
    read = load_rows(recipe.domain, "train")[:256]["prompt"]
    length = sum(map(len, tokenize(tokenizer, read))) / len(read)
    most = peak(trainers[STOCK].model.dtype)
    for each, taken in steps.items():
        shares = [
            2 * 3 * prompts * (samples * tokens * (body + head) + length * body) / seconds / most
            for tokens, seconds in taken[1:]
        ]
        tokens = median(tokens for tokens, _ in taken[1:])
        print(f"{each}: {median(shares):.0%} of the peak ({most / 1e9:.0f} GFLOPS), {tokens:.0f} tokens a sample")


if __name__ == "__main__":
    main()
