"""Sampling a REINFORCE step's completions, whose lengths differ, against transformers' `generate`: tokens a second.

python benchmarks/sampling.py [--recipe qwen2.5-coder-0.5b-instruct/mbpp] [--model NAME] [--tokens 256] [--rounds 2]

Prompts, samples, temperature and the expert's matrices are the recipe's. `generate` gets prompts that were read once,
and keeps every row until the last one has ended, as this library did up to commit 6efce7e. Each round samples anew, so
the lengths differ from round to round; that is why tokens a second are compared.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from peft import get_peft_model
from transformers import GenerationConfig

from experts.domains.base import load_rows
from experts.engine.decoding import end_tokens
from experts.outside.chats import tokenize
from experts.training.reinforce import Reinforce
from experts.training.shared_prompts import sample
from selfadapt import load_base
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="qwen2.5-coder-0.5b-instruct/mbpp")
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    choice = parser.parse_args()
    recipe = read_recipe(find_recipe(choice.recipe))
    assert isinstance(recipe.training, Reinforce)
    base, tokenizer = load_base(choice.model or recipe.model, dtype=recipe.dtype)
    model = get_peft_model(base, recipe.adapt.config()).eval()
    read = load_rows(recipe.domain, "train")["prompt"][: recipe.training.prompts_per_step]
    prompts, samples = tokenize(tokenizer, read), recipe.training.samples_per_prompt
    ends = end_tokens(base.generation_config)
    config = GenerationConfig(
        max_new_tokens=choice.tokens,
        do_sample=True,
        temperature=recipe.training.temperature,
        top_k=0,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )

    def tokens_a_second(plainly: bool) -> tuple[float, list[int]]:
        start = time.perf_counter()
        rows = sample(model, prompts, samples, config, plainly=plainly)
        seconds = time.perf_counter() - start
        lengths = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
        return sum(lengths) / seconds, lengths

    torch.manual_seed(0)
    ratios, seen = [], []
    for _ in range(choice.rounds):
        (theirs, their_lengths), (ours, our_lengths) = tokens_a_second(False), tokens_a_second(True)
        print(f"tokens a second: {theirs:.1f} by generate, {ours:.1f} row by row", flush=True)
        ratios.append(ours / theirs)
        seen += their_lengths + our_lengths
    print(
        f"{len(prompts)} prompts × {samples} samples, {min(seen)} to {max(seen)} tokens, median {median(seen):.0f}: "
        f"row by row has {median(ratios):.2f} × the tokens a second of generate "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {choice.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
