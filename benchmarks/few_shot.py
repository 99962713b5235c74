"""One generation of the few-shot search, against trying its candidates one after another.

Ours, with 32 candidates and 10 examples, finds:

- the elite: the quarter of the candidates that the next generation is drawn from, best first;
- the best: only the best candidate, as when the search chooses between its finalists.

One after another, each of the 32 candidates is first put into a model's weights, in one of two ways:

- rebuilt: U diag(s·z) Vᵀ of every adapted matrix from its full-rank factors, written over the weights of a plain model,
  as the paper's code does;
- merged: by this package, from the 64 singular values that the shipped experts change.

The model then writes its greedy answers to the 10 examples in one batch with transformers' `generate`, which stops when
all have ended. This gives the rewards. The likelihoods of the right answers, which break ties, take another forward
pass over the 10 examples. Each part is timed by itself, and the time of one way is the sum. Answers and likelihoods are
the rebuilt model's; a merged one would take as long.

python benchmarks/few_shot.py [--rounds 3] [--candidates 32] [--examples 10] [--per model]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dispatch.few_shot import Search, matrix_groups, mixture_of, rank_candidates
from experts.engine import NativeEngine, mixed
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.shipped import shipped_library
from experts.svf.decomposition import decompose
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe

SUMS = {
    "rebuilt, one run": ["rebuilding", "answers"],
    "rebuilt, one run, and the likelihoods": ["rebuilding", "answers", "likelihoods"],
    "merged, one run": ["merging", "answers"],
    "merged, one run, and the likelihoods": ["merging", "answers", "likelihoods"],
}
OURS = ("the elite", "the best")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--per", choices=["model", "layer", "matrix"], default="model")
    return parser.parse_args()


def rebuild(weight: Tensor, factors: tuple[Tensor, Tensor, Tensor], difference: Tensor) -> None:
    """Replaces a weight [m, n] with W', from its factors and the experts' difference Σ_k α_k (z_k − 1)."""
    u, s, vt = factors
    z = s.new_ones(len(s))
    z[: len(difference)] += difference
    torch.mm(u * (s * z), vt, out=weight)


def main() -> None:
    options = arguments()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    base, tokenizer = load_base()
    plain, _ = load_base()
    model: Any = library.load(base)
    engine = NativeEngine(model, tokenizer)
    recipe = read_recipe(find_recipe("smollm2-135m/stories"))
    domain = recipe.domain
    rows = domain.load("validation").to_list()[: options.examples]
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    groups = matrix_groups(model, options.per)
    size = (options.candidates, len(library), 1 + max(groups.values()))
    alphas = 1 / len(library) + 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    search = Search(max_new_tokens=16)
    elite = round(search.elite * len(alphas))
    layers = {matrix: model.get_base_model().get_submodule(matrix) for matrix in groups}
    weights = {matrix: plain.get_submodule(matrix).weight.data for matrix in groups}
    factors = {matrix: decompose(weight, min(weight.shape)) for matrix, weight in weights.items()}
    seconds: dict[str, list[float]] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[part][-1] += time.perf_counter() - start

    for _ in range(options.rounds):
        for part in (*OURS, "rebuilding", "merging", "answers", "likelihoods"):
            seconds.setdefault(part, []).append(0.0)
        found = {}
        for part, places in zip(OURS, (elite, 1), strict=True):
            with timed(part):
                candidates = mixture_of(library.names, alphas, groups)
                found[part], _ = rank_candidates(engine, candidates, rows, domain.reward, search, places)
        scores = torch.zeros(len(alphas), 2)
        for candidate, alpha in enumerate(alphas):  # [K, G]
            with timed("rebuilding"), torch.no_grad():
                for matrix, weight in weights.items():
                    rebuild(weight, factors[matrix], alpha[:, groups[matrix]] @ layers[matrix].deltas(library.names))
            with timed("answers"):
                texts = NativeEngine(plain, tokenizer).generate(prompts, max_new_tokens=search.max_new_tokens)
                scores[candidate, 0] = torch.tensor(domain.reward(texts, **columns)).mean()
            with timed("likelihoods"):
                scores[candidate, 1] = NativeEngine(plain, tokenizer).loglikelihood(prompts, columns["answer"]).mean()
            of_matrix = {matrix: alpha[None, :, group] for matrix, group in groups.items()}
            mixture = Mixture(tuple(library.names), alpha.mean(1)[None], of_matrix)
            with timed("merging"), mixed(model, mixture):
                pass
        ranking = sorted(range(len(alphas)), key=lambda c: tuple(scores[c].tolist()), reverse=True)
        print("the same elite:", found["the elite"] == ranking[:elite], end=", ")
        print("the same best:", found["the best"] == found["the elite"][:1] == ranking[:1], found["the best"])

    title = f"{options.candidates} candidates × {options.examples} examples, weights per {options.per}"
    show(seconds, title)


def show(seconds: dict[str, list[float]], title: str) -> None:
    """Prints the seconds of the parts and of their sums, and the ratio of each to ours."""
    for name, parts in SUMS.items():
        seconds[name] = [sum(times) for times in zip(*(seconds[part] for part in parts), strict=True)]
    table = Table("", "seconds (median)", *(f"× {ours} (median)" for ours in OURS), title=title)
    for name, times in seconds.items():
        ratios = [median(a / b for a, b in zip(times, seconds[ours], strict=True)) for ours in OURS]
        table.add_row(name, f"{median(times):.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
