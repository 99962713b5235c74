"""What the shipped experts, which the dense base trained, are worth on that base in four and in eight bits.

python benchmarks/quantised_bases.py [--problems 64] [--quantizations nf4 int8]

Greedy answers to test problems. An expert's gain is its share of right answers less that of the base it runs on; what
it keeps is its gain there by its gain on the dense base, over all experts, with a 95 % interval by a bootstrap of the
problems (10,000 draws, seed 0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.shipped import shipped_library
from experts.training.evaluation import Problems, held_out_scores
from experts.training.statistics import accuracy
from selfadapt import load_base
from selfadapt.base_models import BaseOptions
from selfadapt.recipes import find_recipe, read_recipe

BASE = "smollm2-135m"


def gains(quantization: str | None, most: int) -> list[NDArray[np.float64]]:
    """Of each expert, by how much it does better than its base, problem by problem: −1, 0 or 1. Prints the shares."""
    options: BaseOptions = {} if quantization is None else {"quantization": quantization}
    library = ExpertLibrary.open(shipped_library(BASE) or Path())
    base, tokenizer = load_base(BASE, **options)
    model = library.load(base)
    found = []
    for name in library.names:
        recipe = read_recipe(find_recipe(f"{BASE}/{name}"))
        rows = recipe.domain.load("test")
        problems = Problems(recipe.domain, rows.select(range(min(most, len(rows)))), recipe.training.max_new_tokens)
        alone, under = (
            held_out_scores(model, tokenizer, problems, mixture=Mixture.of(weights, len(problems.rows)))
            for weights in ({}, {name: 1.0})
        )
        print(f"| {quantization or 'dense'} | {name} | {accuracy(alone)} | {accuracy(under)} |", flush=True)
        found.append(np.greater_equal(under, 1).astype(float) - np.greater_equal(alone, 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--quantizations", nargs="+", default=["nf4", "int8"])
    options = parser.parse_args()
    print("| base | expert | base alone | with the expert |\n|---|---|---|---|")
    dense = gains(None, options.problems)
    for quantization in options.quantizations:
        there = gains(quantization, options.problems)
        kept = sum(each.mean() for each in there) / sum(each.mean() for each in dense)
        draws = np.random.default_rng(0)
        shares = []
        for _ in range(10_000):
            places = [draws.integers(len(each), size=len(each)) for each in dense]
            ours, theirs = (sum(e[p].mean() for e, p in zip(each, places, strict=True)) for each in (there, dense))
            shares.append(ours / theirs)
        low, high = np.quantile(shares, [0.025, 0.975])
        n = sum(map(len, dense))
        print(
            f"{quantization}: the experts keep {kept:.2f} of their gain ({low:.2f} to {high:.2f}, n = {n})", flush=True
        )


if __name__ == "__main__":
    main()
