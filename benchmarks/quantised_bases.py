"""What the shipped experts, which the dense base trained, are worth on that base in four and in eight bits.

python benchmarks/quantised_bases.py [--problems 64] [--quantizations nf4 int8]

Beside each other: by how much an expert changes the matrices that it adapts, by how much few bits round them, and how
much of that rounding is along the expert's own singular vectors, where it could be taken for the expert's. No problems
(0) give this table alone.

Greedy answers to test problems. An expert's gain is its share of right answers less that of the base it runs on; what
it keeps is its gain there by its gain on the dense base, over all experts, with a 95 % interval by a bootstrap of the
problems (10,000 draws, seed 0).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.shipped import shipped_library
from experts.svf.decomposition import decompose
from experts.svf.quantised import dense_weight, dequantised
from experts.training.evaluation import Problems, held_out_scores
from experts.training.statistics import accuracy
from selfadapt import load_base
from selfadapt.base_models import BaseOptions
from selfadapt.recipes import find_recipe, read_recipe

BASE = "smollm2-135m"
DENSE = "dense"


def loaded(kind: str) -> tuple[Any, Any]:
    options: BaseOptions = {} if kind == DENSE else {"quantization": kind}
    return load_base(BASE, **options)


def print_changes(library: ExpertLibrary, kinds: list[str]) -> None:
    """Frobenius norms over an expert's matrices: of its difference, of the rounding, and of that along u_i v_iᵀ."""
    print("| base | expert | expert / weights | rounding / weights | of it in the expert's directions / expert |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        base, _ = loaded(kind)
        for name in library.names:
            squares = torch.zeros(4)
            for matrix, z in library.expert(name).z.items():
                layer = base.get_submodule(matrix)
                weight = dense_weight(layer).float()
                rounding = dequantised(layer).float() - weight
                u, s, vt = decompose(weight, len(z))
                along = ((u.T @ rounding) * vt).sum(1)  # u_iᵀ (W_q − W) v_i [r]
                squares += torch.stack([x.square().sum() for x in (weight, s * (z - 1), rounding, along)])
            weights, expert, rounded, along = squares.sqrt().tolist()
            print(f"| {kind} | {name} | {expert / weights:.4f} | {rounded / weights:.4f} | {along / expert:.3f} |")
    print(flush=True)


def gains(library: ExpertLibrary, kinds: list[str], most: int) -> dict[str, list[NDArray[np.float64]]]:
    """Of each base and expert, what the expert gains, problem by problem: −1, 0 or 1. Prints the shares."""
    print("| base | expert | base alone | with the expert |\n|---|---|---|---|")
    models = {
        kind: (library.load(base), tokenizer) for kind, (base, tokenizer) in zip(kinds, map(loaded, kinds), strict=True)
    }
    found: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in kinds}
    for name in library.names:
        recipe = read_recipe(find_recipe(f"{BASE}/{name}"))
        rows = recipe.domain.load("test")
        problems = Problems(recipe.domain, rows.select(range(min(most, len(rows)))), recipe.training.max_new_tokens)
        for kind, (model, tokenizer) in models.items():
            alone, under = (
                held_out_scores(model, tokenizer, problems, mixture=Mixture.of(weights, len(problems.rows)))
                for weights in ({}, {name: 1.0})
            )
            print(f"| {kind} | {name} | {accuracy(alone)} | {accuracy(under)} |", flush=True)
            found[kind].append(np.greater_equal(under, 1).astype(float) - np.greater_equal(alone, 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--quantizations", nargs="+", default=["nf4", "int8"])
    options = parser.parse_args()
    library = ExpertLibrary.open(shipped_library(BASE) or Path())
    print_changes(library, options.quantizations)
    if not options.problems:
        return
    found = gains(library, [DENSE, *options.quantizations], options.problems)
    dense = found.pop(DENSE)
    for quantization, there in found.items():
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
