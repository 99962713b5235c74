"""lm-eval's tasks in two passes against lm-eval's own `hf`: questions of four domains mixed, one expert for each.

The experts have full rank on the MLP matrices and random values: only their cost matters.

python benchmarks/evaluation.py [--rounds 3] [--per-domain 16] [--batch-size 16] [--new-tokens 16]
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import get_peft_model
from sidebyside import side_by_side

from dispatch.embedding import PROMPTS, write_prompts
from experts.library import ExpertLibrary
from experts.svf import SVFConfig
from experts.svf.fingerprint import fingerprint
from selfadapt import SelfAdaptiveModel, load_base
from selfadapt.harness import SelfAdaptiveLM
from selfadapt.recipes import Recipe, find_recipe, read_recipe

DOMAINS = ("stories", "groups", "relations", "sums")
MLP = r".*\.mlp\.(gate|up|down)_proj"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-domain", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    recipes = {name: read_recipe(find_recipe(f"smollm2-135m/{name}")) for name in DOMAINS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = random_library(folder, recipes)
        adaptive = SelfAdaptiveModel.from_pretrained(library=library, dispatch="embedding")
        base, tokenizer = load_base()
        models = {
            "lm-eval's hf": HFLM(pretrained=base, tokenizer=tokenizer, batch_size=options.batch_size),
            "two passes": SelfAdaptiveLM(pretrained=adaptive, batch_size=options.batch_size),
        }
        manager = write_tasks(folder, recipes, options.per_domain, options.new_tokens)

        def evaluate(model: Any, task: str) -> None:
            lm_eval.simple_evaluate(
                model=model, tasks=[task], task_manager=manager, apply_chat_template=True, bootstrap_iters=0
            )

        for task, what in (("writing", f"{options.new_tokens} new tokens each"), ("choice", "four choices each")):
            side_by_side(
                f"{4 * options.per_domain} questions of four domains mixed, {what}, batches of {options.batch_size}",
                {name: lambda model=model, task=task: evaluate(model, task) for name, model in models.items()},
                against="lm-eval's hf",
                rounds=options.rounds,
            )


def random_library(folder: Path, recipes: dict[str, Recipe]) -> ExpertLibrary:
    """A library with one random expert of full rank per domain, which knows the domain's training prompts."""
    base, _ = load_base()
    library = ExpertLibrary.create(folder / "library", "smollm2-135m", fingerprint(base))
    torch.manual_seed(0)
    for name, recipe in recipes.items():
        config = SVFConfig(target_modules=MLP, rank=None, base_fingerprint=library.fingerprint)
        config.description = recipe.domain.description
        model: Any = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(str(folder / name), save_embedding_layers=False)
        write_prompts(folder / name, recipe.domain.load("train")[:PROMPTS]["prompt"])
        base = model.unload()
        library.add(folder / name)
    return library


def write_tasks(folder: Path, recipes: dict[str, Recipe], per_domain: int, new_tokens: int) -> TaskManager:
    """Writes a generation task and a multiple-choice task on the same questions, with their domains shuffled."""
    questions = [
        chat[-1]["content"]
        for recipe in recipes.values()
        for chat in recipe.domain.load("test").select(range(per_domain))["prompt"]
    ]
    random.Random(0).shuffle(questions)
    rows = [{"question": question, "choices": ["1", "10", "Ben", "nobody"]} for question in questions]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": 0,
    }
    tasks = {
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}],
        },
        "writing": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": [], "max_gen_toks": new_tokens},
            "doc_to_target": "0",
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, own in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **own, "task": name}))
    return TaskManager(include_path=folder, include_defaults=False)


if __name__ == "__main__":
    main()
