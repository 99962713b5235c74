"""Few-shot search with the settings of the paper's code, beside this package's, on domains that no expert knows.

Both search a mixture of the shipped experts on the first ten training rows of a domain of the experiment `unseen`, and
answer its first 128 test items under what they found. Ours is `dispatch.few_shot.search`, as the experiment runs it.
The other is the cross-entropy search of SakanaAI/self-adaptive-llms at 03a41ae: 32 candidates, an elite of 0.2 chosen
only by the share of right answers (chance breaks ties), weights between 0 and 1, one per matrix, no lower bound on the
spread, and 50 generations, in each of which the best candidate so far competes again. Its result is the best candidate
on all ten examples, evaluated at several generations. One thing differs: among candidates with equally many right
answers, the best one here finds the reference answers likeliest; there, it finds its own right answers likeliest. The
paper's code then chooses among generations on the test set; nothing here does.

SELFADAPT_DATA=... python benchmarks/few_shot_settings.py --output RESULTS.jsonl [--domains large_stories] [--at 5 50]

A line with one digit per item is written after each mixture has been evaluated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from dispatch import FEW_SHOT
from dispatch.few_shot import Found, Search, matrix_groups, mixture_of, rank_candidates, search
from experts.engine import NativeEngine
from experts.training.statistics import accuracy
from selfadapt.grid.cells import EXAMPLES, DispatchedCell, Evaluation
from selfadapt.grid.experiment import find_experiment, read_experiment
from selfadapt.two_pass import SelfAdaptiveModel


def reference_search(
    engine: NativeEngine, names: Sequence[str], rows: list[dict[str, Any]], reward: Any, options: Search
) -> Iterator[Found]:
    """The most accurate candidate so far, after each generation."""
    generator = torch.Generator().manual_seed(options.seed)
    groups = matrix_groups(engine.model, options.per)
    size = (len(names), 1 + max(groups.values()))  # K experts, G weights each
    mean, std = torch.full(size, 1 / len(names)), torch.full(size, options.std)
    incumbent = mean
    for _ in range(options.generations):
        alphas = mean + std * torch.randn(options.population, *size, generator=generator)  # [C, K, G]
        alphas = alphas.clamp(0, 1)
        alphas[0] = incumbent
        candidates = mixture_of(names, alphas, groups)
        order, scores = rank_candidates(engine, candidates, rows, reward, options, places=options.population)
        incumbent = alphas[order[0]]
        yield Found(mixture_of(names, incumbent[None], groups), *scores[0].tolist())
        rewards = torch.empty(options.population)
        rewards[order] = scores[:, 0]
        chance = torch.randperm(options.population, generator=generator)
        elite = chance[rewards[chance].argsort(descending=True, stable=True)[: int(options.elite * options.population)]]
        mean, std = alphas[elite].mean(0), alphas[elite].std(0)


def searches(
    adaptive: SelfAdaptiveModel, names: Sequence[str], evaluation: Evaluation, options: argparse.Namespace
) -> Iterator[tuple[str, int, str, Found]]:
    """Yields what ours found, then the other at each generation to evaluate: settings, generations, per, found."""
    rows = evaluation.domain.load("train").select(range(EXAMPLES)).to_list()
    arguments = (cast(NativeEngine, adaptive.engine), names, rows, evaluation.domain.reward)
    ours = replace(evaluation.search, seed=options.seed)
    yield "ours", ours.generations, ours.per, search(*arguments, ours)
    theirs = replace(ours, per=options.per, elite=0.2, generations=max(options.at), least_std=0.0)
    for generation, found in enumerate(reference_search(*arguments, theirs), 1):
        print(f"generation {generation}: {found.reward:.0%} of the examples right", flush=True)
        if generation in options.at:
            yield "the paper's code", generation, options.per, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", default=["large_stories", "multiplication", "science"])
    parser.add_argument("--at", type=int, nargs="+", default=[5, 50], help="generations after which to evaluate")
    parser.add_argument(
        "--per", choices=["model", "layer", "matrix"], default="matrix", help="what the other search has a weight for"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cells = {cell.name: cell for cell in read_experiment(find_experiment("unseen")).cells}
    some = cells[f"{FEW_SHOT}/{options.domains[0]}"]
    assert isinstance(some, DispatchedCell)
    library = some.library
    adaptive = SelfAdaptiveModel.from_pretrained(some.model, library, "none", dtype=some.dtype)
    for name in options.domains:
        evaluation = cells[f"{FEW_SHOT}/{name}"].evaluations[name]
        test = evaluation.domain.load("test").select(range(evaluation.size))
        for settings, generations, per, found in searches(adaptive, library.names, evaluation, options):
            mixture = found.mixture.expand(len(test))
            scores = evaluation.scores(adaptive.model, adaptive.tokenizer, test, mixture)
            print(f"{name}, {settings}, {generations} generations: {accuracy(scores)}", flush=True)
            line = {
                "domain": name,
                "settings": settings,
                "generations": generations,
                "per": per,
                "seed": options.seed,
                "right_of_the_examples": found.reward,
                "weights": dict(zip(library.names, found.mixture.weights.mean(0).tolist(), strict=True)),
                "right": accuracy(scores).right,
                "n": len(scores),
                "scores": "".join("1" if score >= 1 else "0" for score in scores),
            }
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
