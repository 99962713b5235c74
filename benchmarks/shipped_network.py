"""What the network that comes with the built-in base writes: whose expert it resembles, what it answers, how soon.

python benchmarks/shipped_network.py [--problems 128] [--domains NAME …] [--rounds 5] [--network FOLDER] [--output FILE]

Descriptions come from its file `test_descriptions.jsonl`, which trained nothing and chose nothing; problems are the
first of each domain's test split. "Another's" description is the next domain's. `--problems 0` answers none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sidebyside import side_by_side
from torch import Tensor

from dispatch import Fixed
from dispatch.text_to_lora import T2LDispatcher, by_description, by_prompt, network_path
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.files import write_json
from experts.shipped import shipped_library
from experts.text_to_lora import TextToAdapter
from experts.text_to_lora.baselines import random_text
from experts.text_to_lora.tasks import read_descriptions
from experts.training.evaluation import Problems, held_out_scores
from experts.training.statistics import accuracy, mcnemar
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe

BASE = "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--domains", nargs="*", help="whose problems are answered; by default all experts'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/shipped_network.json"))
    options = parser.parse_args()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    descriptions = read_descriptions(network_path(library) / "test_descriptions.jsonl")
    recipes = {name: read_recipe(find_recipe(f"smollm2-135m/{name}")) for name in library.names}
    rows = {name: recipe.domain.load("test") for name, recipe in recipes.items()}
    rows = {name: own.select(range(min(options.problems or 128, len(own)))) for name, own in rows.items()}

    base, tokenizer = load_base()
    engine = NativeEngine(library.load(base), tokenizer)
    dispatcher = T2LDispatcher.from_pretrained(options.network or network_path(library), engine)
    writer = dispatcher.writer
    report: dict[str, Any] = {
        "descriptions": nearest("test descriptions", writer, library, descriptions),
        "problems": nearest(
            "test problems, each from its own prompt",
            writer,
            library,
            {name: [text for text in by_prompt(own["prompt"]) if text] for name, own in rows.items()},
        ),
    }

    if options.problems:
        report["answers"] = {}
        for name in options.domains or library.names:
            recipe = recipes[name]
            other = library.names[(library.names.index(name) + 1) % len(library)]
            sentences = {
                f"written: {descriptions[name][0]}": descriptions[name][0],
                f"written, another's: {descriptions[other][0]}": descriptions[other][0],
                "written, a random sentence": random_text(0),
            }
            ways: dict[str, Callable[[Sequence[Any]], Mixture]] = {
                BASE: Fixed(Mixture.of({})),
                f"expert {name}": Fixed(Mixture.of({name: 1.0})),
            }
            ways |= {way: T2LDispatcher(writer, engine, by_description(text)) for way, text in sentences.items()}
            ways["written from each prompt"] = dispatcher
            problems = Problems(recipe.domain, rows[name], recipe.training.max_new_tokens)
            scores = {
                way: held_out_scores(engine.model, tokenizer, problems, mixture=mix(rows[name]["prompt"]))
                for way, mix in ways.items()
            }
            report["answers"][name] = scores
            table = Table(name, "right", "p against the base")
            for way, own in scores.items():
                table.add_row(way, str(accuracy(own)), f"{mcnemar(scores[BASE], own):.1g}")
            Console(width=160).print(table)
            write_json(options.output, report)
    write_json(options.output, report)

    fresh = count()  # an expert is kept once it was written

    def ask(way: Callable[[Sequence[Any]], Mixture]) -> Callable[[], object]:
        def run() -> object:
            prompts = [f"There are {next(fresh)} boxes with 7 eggs in each. How many eggs are there in all?"]
            return engine.generate(prompts, mixture=way(prompts), max_new_tokens=16)

        return run

    side_by_side(
        "a sentence to an answer of at most 16 tokens",
        {BASE: ask(Fixed(Mixture.of({}))), "t2l": ask(dispatcher)},
        against=BASE,
        rounds=options.rounds,
    )


def nearest(
    what: str, writer: TextToAdapter, library: ExpertLibrary, descriptions: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """Prints and returns how many of each kind are nearest, by ‖z − z'‖, to which expert or to the base."""
    matrices = [matrix.name for matrix in writer.network.spec.matrices]

    def flat(z: Any) -> Tensor:
        return torch.cat([z[matrix] - 1 for matrix in matrices], -1)

    experts = torch.stack([flat(library.z(name)) for name in library.names])  # [K, P]
    targets = torch.cat([experts, torch.zeros_like(experts[:1])])  # and z = 1
    names = [*library.names, BASE]
    table = Table("written from", "right", *names, "cosine of z − 1 with its own", "‖z − 1‖ relative to it", title=what)
    found = {}
    right, of = {True: 0, False: 0}, {True: 0, False: 0}
    for name, texts in descriptions.items():
        written = flat(writer.write(texts))  # [n, P]
        own = names.index(name) if name in names else names.index(BASE)
        chosen = torch.cdist(written, targets).argmin(1)
        counts = chosen.bincount(minlength=len(names)).tolist()
        found[name] = dict(zip(names, counts, strict=True))
        similar = torch.cosine_similarity(written, targets[own][None]).mean().item()
        size = (written.norm(dim=1) / targets[own].norm()).mean().item()
        of_expert = names[own] != BASE
        cells = [f"{similar:.2f}", f"{size:.2f}"] if of_expert else ["", f"{written.norm(dim=1).mean():.2f} (absolute)"]
        table.add_row(name, str(accuracy((chosen == own).float().tolist())), *map(str, counts), *cells)
        right[of_expert] += counts[own]
        of[of_expert] += len(texts)
    Console(width=180).print(table)
    for of_expert, who in ((True, "an expert's"), (False, "the base's")):
        if of[of_expert]:
            scores = [1.0] * right[of_expert] + [0.0] * (of[of_expert] - right[of_expert])
            print(f"{what}, {who}: {accuracy(scores)}", flush=True)
    return found


if __name__ == "__main__":
    main()
