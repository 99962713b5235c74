"""A shipped expert on a fine-tuned descendant of its base: how comparable the two are, and what the expert earns there.

python benchmarks/transfer.py [--expert stories] [--steps 10] [--learning-rate 5e-6]

The descendant is the built-in base after all its weights were trained on the questions and answers of another domain.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel

from experts.domains import ReasoningGym
from experts.evaluation import accuracy, held_out_scores
from experts.expert import Expert
from experts.library import ExpertLibrary, shipped_library
from experts.transfer import compare, transfer
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe

LETTERS = ReasoningGym(
    name="letters",
    description="Counting how many times a letter occurs in a piece of text.",
    dataset="letter_counting",
    parameters={"min_words": 1, "max_words": 3},
    answer_in="last_number",
)


def descend(base: Any, tokenizer: Any, steps: int, learning_rate: float, rows: int = 8) -> None:
    """Trains all weights of the base on next tokens of questions about letters and their answers."""
    problems = LETTERS.load("train").shuffle(seed=0)
    optimizer = torch.optim.AdamW(base.parameters(), lr=learning_rate)
    base.train()
    for step in range(steps):
        batch = problems.select([row % len(problems) for row in range(step * rows, (step + 1) * rows)])
        chats = [
            [*prompt, {"role": "assistant", "content": answer}]
            for prompt, answer in zip(batch["prompt"], batch["answer"], strict=True)
        ]
        inputs = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = base(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{steps}: {loss.item():.3f} nats a token")
    base.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expert", default="stories")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    options = parser.parse_args()
    recipe = read_recipe(find_recipe(f"smollm2-135m/{options.expert}"))
    problems = recipe.domain.load("test")
    problems = problems.select(range(min(recipe.test_size, len(problems))))
    base, tokenizer = load_base()
    expert = ExpertLibrary.open(shipped_library("smollm2-135m") or Path()).expert(options.expert)

    def earns(who: str, model: Any, its_expert: Expert | None) -> None:
        running: Any = its_expert.attach(model) if its_expert else model
        scores = held_out_scores(
            running, tokenizer, recipe.domain, problems, max_new_tokens=recipe.training.max_new_tokens
        )
        print(f"{who}: {accuracy(scores)}")
        if isinstance(running, PeftModel):
            running.unload()

    earns("base", base, None)
    earns("expert on its base", base, expert)
    descendant, _ = load_base()
    descend(descendant, tokenizer, options.steps, options.learning_rate)
    comparisons = compare(expert, base, descendant)
    for figure in ("aligned", "overlap", "chance", "spectrum", "difference"):
        values = [getattr(comparison, figure) for comparison in comparisons]
        print(f"{figure}: mean {fmean(values):.4f}, {min(values):.4f} to {max(values):.4f}")
    earns("descendant", descendant, None)
    earns("transferred expert", descendant, transfer(expert, descendant, "descendant"))
    for seed in range(3):
        earns(f"shuffled, seed {seed}", descendant, transfer(expert, descendant, "descendant", shuffled=seed))


if __name__ == "__main__":
    main()
