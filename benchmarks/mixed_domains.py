"""Held-out problems of all shipped domains in one list: what answers them best?

python benchmarks/mixed_domains.py [--per-domain 64] [--new-tokens 16] [--calibrate 48] [--output RESULTS.json]

Compares the base, every expert alone, every dispatcher, and the oracle, which knows the domain of each problem.
`--calibrate N` first fits the calibration of `prompt` and `classifier` on N training prompts of each domain and
keeps it in the library.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from dispatch import Calibration, Dispatcher, Fixed, PromptDispatcher, calibration_path, find_dispatcher
from experts.domains import Domain
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.files import write_json
from experts.shipped import shipped_library
from experts.training.statistics import Accuracy, accuracy, mcnemar
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-domain", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--calibrate", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/mixed_domains.json"))
    options = parser.parse_args()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    base, tokenizer = load_base()
    model: Any = library.load(base)
    domains: list[Domain] = [read_recipe(find_recipe(f"smollm2-135m/{name}")).domain for name in library.names]
    if options.calibrate:
        _calibrate(model, tokenizer, library, domains, options.calibrate)
    rows = [domain.load("test").to_list()[: options.per_domain] for domain in domains]
    prompts = [row["prompt"] for own in rows for row in own]
    owner = torch.tensor([k for k, own in enumerate(rows) for _ in own])

    def scores(mixture: Mixture) -> list[float]:
        texts = NativeEngine(model, tokenizer).generate(prompts, max_new_tokens=options.new_tokens, mixture=mixture)
        rewards: list[float] = []
        for domain, own in zip(domains, rows, strict=True):
            columns = {column: [row[column] for row in own] for column in own[0] if column != "prompt"}
            rewards += domain.reward(texts[len(rewards) : len(rewards) + len(own)], **columns)
        return rewards

    ways: dict[str, Dispatcher] = {"base": Fixed(Mixture.of({}))}
    ways |= {f"expert {name}": Fixed(Mixture.of({name: 1.0})) for name in library.names}
    ways |= {
        name: find_dispatcher(name, library, NativeEngine(model, tokenizer))
        for name in ("prompt", "classifier", "embedding")
        if name != "classifier" or library.classifier
    }
    oracle = Mixture(tuple(library.names), torch.nn.functional.one_hot(owner, len(library)).float())
    ways["oracle"] = lambda prompts: oracle
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        mixture = way(prompts)
        found[name] = {"scores": scores(mixture), "dispatched": _right(mixture, library.names, owner)}
        print(name, accuracy(found[name]["scores"]), flush=True)
    write_json(options.output, found)
    _table(found, library.names, owner)


def _calibrate(
    model: Any, tokenizer: PreTrainedTokenizerBase, library: ExpertLibrary, domains: Sequence[Domain], each: int
) -> None:
    prompts = [row["prompt"] for domain in domains for row in domain.load("train").to_list()[:each]]
    labels = torch.arange(len(domains)).repeat_interleave(each)
    for reader in ("prompt", "classifier"):
        dispatcher = find_dispatcher(reader, library, NativeEngine(model, tokenizer))
        assert isinstance(dispatcher, PromptDispatcher)
        calibration = Calibration.fitted(dispatcher.scores(prompts), labels)
        calibration.write(calibration_path(library, reader), library.names)


def _right(mixture: Mixture, names: Sequence[str], owner: torch.Tensor) -> float:
    """The share of prompts whose own expert has the largest weight."""
    rows = [mixture[row] for row in range(len(mixture))]
    return sum(
        max(row, key=lambda name: row[name], default="") == names[k]
        for row, k in zip(rows, owner.tolist(), strict=True)
    ) / len(rows)


def _table(found: dict[str, dict[str, Any]], names: Sequence[str], owner: torch.Tensor) -> None:
    table = Table("", "right", *names, "dispatched right", "p against the base")
    for name, way in found.items():
        scores = torch.tensor(way["scores"])
        own: list[Accuracy] = [accuracy(scores[owner == k].tolist()) for k in range(len(names))]
        table.add_row(
            name,
            str(accuracy(way["scores"])),
            *(f"{each.value:.0%}" for each in own),
            f"{way['dispatched']:.0%}",
            f"{mcnemar(found['base']['scores'], way['scores']):.1g}",
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
