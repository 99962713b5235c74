"""A shipped expert on a fine-tuned descendant of its base: how comparable the two are, and what the expert earns there.

python benchmarks/transfer.py [--expert stories] [--descendant smollm2-135m/descendant] [--problems 128]

The descendant is the base, merged with the LoRA that the recipe of that name trains.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from experts.exchange.transfer import compare_bases, transfer
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.shipped import shipped_library
from experts.training.evaluation import Problems, held_out_scores
from experts.training.statistics import accuracy, mcnemar
from experts.training.trainer import LoadedBase
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe, train_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expert", default="stories")
    parser.add_argument("--descendant", default="smollm2-135m/descendant")
    parser.add_argument("--problems", type=int, default=128)
    options = parser.parse_args()
    recipe = read_recipe(find_recipe(f"smollm2-135m/{options.expert}"))
    rows = recipe.domain.load("test")
    rows = rows.select(range(min(options.problems, len(rows))))
    problems = Problems(recipe.domain, rows, recipe.training.max_new_tokens)
    base, tokenizer = load_base()
    expert = ExpertLibrary.open(shipped_library("smollm2-135m") or Path()).expert(options.expert)
    earned: dict[str, list[float]] = {}

    def earns(who: str, model: Any, its_expert: Expert | None = None) -> None:
        running = its_expert.attach(model) if its_expert else model
        scores = held_out_scores(running, tokenizer, problems)
        earned[who] = scores
        print(f"{who}: {accuracy(scores)}")
        if its_expert:
            running.unload()

    earns("base", base)
    earns("expert on its base", base, expert)
    ancestor, _ = load_base()
    with TemporaryDirectory() as folder:
        recipe = read_recipe(find_recipe(options.descendant))
        trained = train_recipe(recipe, LoadedBase(ancestor, tokenizer, recipe.model), recipe.run(Path(folder, "lora")))
    own = " to ".join(str(accuracy(scores)) for scores in (trained.base_scores, trained.expert_scores))
    print(f"the descendant on what it was trained for: {own}")
    descendant: Any = trained.model.merge_and_unload()  # type: ignore[operator]
    comparisons = compare_bases(expert, base, descendant)
    for figure in ("aligned", "overlap", "chance", "spectrum", "difference"):
        values = [getattr(comparison, figure) for comparison in comparisons]
        print(f"{figure}: mean {fmean(values):.4f}, {min(values):.4f} to {max(values):.4f}")
    earns("descendant", descendant)
    earns("transferred expert", descendant, transfer(expert, descendant, "descendant"))
    for seed in range(3):
        earns(f"shuffled, seed {seed}", descendant, transfer(expert, descendant, "descendant", shuffled=seed))
    for who in ("descendant", *(f"shuffled, seed {seed}" for seed in range(3))):
        print(f"transferred expert against {who}: McNemar p = {mcnemar(earned[who], earned['transferred expert']):.1e}")


if __name__ == "__main__":
    main()
