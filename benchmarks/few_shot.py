"""A population of mixtures scored as rows of batches, against one merge and one run for each.

The run for each answers its examples in one batch; it does so without and with the likelihoods of the right answers,
which the search breaks ties by.

python benchmarks/few_shot.py [--rounds 3] [--candidates 32] [--examples 10] [--per model]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sidebyside import side_by_side
from torch import Tensor

from dispatch.few_shot import Search, matrix_groups, score
from experts.engine import generate, loglikelihood
from experts.library import ExpertLibrary, shipped_library
from experts.mixture import Mixture
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--per", choices=["model", "layer", "matrix"], default="model")
    options = parser.parse_args()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    base, tokenizer = load_base()
    model: Any = library.load(base)
    recipe = read_recipe(find_recipe("smollm2-135m/stories"))
    domain = recipe.domain
    rows = domain.load("validation").to_list()[: options.examples]
    groups = matrix_groups(model, options.per)
    size = (options.candidates, len(library), 1 + max(groups.values()))
    alphas = 1 / len(library) + 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    search = Search(max_new_tokens=16)
    found: dict[str, Tensor] = {}

    def together() -> None:
        found["together"] = score(model, tokenizer, library.names, alphas, groups, rows, domain.reward, search)

    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}

    def one_by_one(likelihoods: bool) -> None:
        scores = torch.zeros(len(alphas), 2)
        for candidate, alpha in enumerate(alphas):
            # [1, K, G] → a mixture that all rows share, which runs on merged weights
            of_matrix = {matrix: alpha[None, :, group].expand(len(rows), -1) for matrix, group in groups.items()}
            mixture = Mixture(tuple(library.names), torch.zeros(len(rows), len(library)), of_matrix)
            texts = generate(model, tokenizer, prompts, max_new_tokens=search.max_new_tokens, mixture=mixture)
            scores[candidate, 0] = torch.tensor(domain.reward(texts, **columns)).mean()
            if likelihoods:
                answers = loglikelihood(model, tokenizer, prompts, columns["answer"], mixture=mixture)
                scores[candidate, 1] = answers.mean()
        if likelihoods:
            found["one by one"] = scores

    side_by_side(
        f"{options.candidates} candidates × {options.examples} examples, weights per {options.per}",
        {
            "rows of batches": together,
            "one merge and one generation each": lambda: one_by_one(likelihoods=False),
            "and one likelihood run": lambda: one_by_one(likelihoods=True),
        },
        against="rows of batches",
        rounds=options.rounds,
        warmup=0,
    )
    best = {name: max(range(len(scores)), key=lambda c: tuple(scores[c].tolist())) for name, scores in found.items()}
    print(
        "best candidate:",
        best,
        "| largest difference in reward:",
        (found["together"] - found["one by one"])[:, 0].abs().max().item(),
    )


if __name__ == "__main__":
    main()
