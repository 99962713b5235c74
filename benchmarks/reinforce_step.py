"""A whole REINFORCE step (sampling, reward, gradient, optimiser) of ours against stock TRL with a PEFT LoRA.

python benchmarks/reinforce_step.py [--recipe smollm2-135m/stories] [--model NAME] [--rounds 3]

Stock TRL is its RLOOTrainer with a LoRA of rank 16 on the query and value projections; prompts, samples, lengths,
temperature, micro-batches, reward and dtype are the recipe's for both. Each step is one of a training of its own, on a
base of its own. Beside the ratio stands the share of the processor's peak (model FLOPs utilisation): what a step must
multiply at least, over what a large product of the same dtype reaches in the same run. That is 2 × parameters for
every token that passes: a sampled one three times (sampled, forwards, backwards to the inputs alone), one of the
prompts three times, and without the head.
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
from peft import LoraConfig
from sidebyside import side_by_side
from transformers.trainer_callback import PrinterCallback
from trl import RLOOConfig, RLOOTrainer

from experts.domains.base import load_rows
from experts.outside.chats import tokenize
from experts.training.reinforce import Reinforce
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import make_trainer, reward_function
from selfadapt import load_base
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import Recipe, read_recipe

STOCK, OURS = "stock TRL, LoRA r=16", "ours, the recipe's expert"
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])


def ours(recipe: Recipe, options: Reinforce, name: str, folder: Path) -> Any:
    model, tokenizer = load_base(name, dtype=recipe.dtype)
    return make_trainer(LoadedBase(model, tokenizer, name), recipe.domain, recipe.adapt.config(), options, folder)


def stock(recipe: Recipe, options: Reinforce, name: str, folder: Path) -> Any:
    model, tokenizer = load_base(name, dtype=recipe.dtype)
    sequences = options.prompts_per_step * options.samples_per_prompt
    args = RLOOConfig(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=sequences // options.micro_batch_size,
        num_generations=options.samples_per_prompt,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        learning_rate=options.learning_rate,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=model.device.type == "cpu",
    )
    return RLOOTrainer(
        model=model,
        reward_funcs=reward_function(recipe.domain, options),
        args=args,
        train_dataset=load_rows(recipe.domain, "train"),
        processing_class=tokenizer,
        peft_config=LORA,
    )


def peak(dtype: torch.dtype) -> float:
    """Multiplications and additions a second of the largest product that a step might have."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def parameters(trainer: Any) -> tuple[int, int]:
    """Of the base: what every token passes, and the head."""
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
        trainers = {
            STOCK: stock(recipe, options, name, Path(folder, "stock")),
            OURS: ours(recipe, options, name, Path(folder, "ours")),
        }
        for trainer in trainers.values():
            trainer.remove_callback(PrinterCallback)
        steps: dict[str, list[tuple[float, float]]] = {each: [] for each in trainers}  # tokens a sample, seconds

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
