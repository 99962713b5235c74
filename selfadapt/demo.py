"""`selfadapt demo`: trains an expert on the built-in base and shows what has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experts.engine import NativeEngine
from experts.outside.files import atomic_file, check_writable, write_json
from experts.training.folders import unfinished_folder
from selfadapt.base_models import load_base
from selfadapt.recipes import find_recipe, read_recipe, train_recipe
from selfadapt.report import comparison, demo_page, lora_parameters

RECIPE = "smollm2-135m/stories"
SHOWN = 5


def demo(output: Path) -> dict[str, Any]:
    """Trains the expert of `RECIPE` below `output`, writes `report.json` and `report.md` there, returns the report.

    A demo that was interrupted goes on where it stopped; one that is complete is done again.
    """
    check_writable(output)
    console = Console(stderr=True)
    recipe = read_recipe(find_recipe(RECIPE))
    expert = output / recipe.domain.name
    unfinished = unfinished_folder(expert)
    if unfinished.exists():
        console.print("going on with the demo that was interrupted")
    base, tokenizer = load_base(recipe.model, dtype=recipe.dtype)
    parameters_of_lora = lora_parameters(base)
    result = train_recipe(recipe, base, tokenizer, expert, resume=unfinished.exists(), replace=True)
    report = {
        **comparison(result.base_scores, result.expert_scores, result.constant),
        "train_seconds": result.train_seconds,
        "parameters": result.parameters,
        "lora_parameters": parameters_of_lora,
        "domain": recipe.domain.name,
        "description": recipe.domain.description,
        "seed": recipe.training.seed,
        "expert": str(expert),
    }
    prompts = recipe.domain.load("test")["prompt"][:SHOWN]
    new_tokens = recipe.training.max_new_tokens
    with result.model.disable_adapter():
        before = NativeEngine(result.model, tokenizer).generate(prompts, max_new_tokens=new_tokens)
    after = NativeEngine(result.model, tokenizer).generate(prompts, max_new_tokens=new_tokens)
    answers = list(zip([chat[-1]["content"] for chat in prompts], before, after, strict=True))
    write_json(output / "report.json", report)
    with atomic_file(output / "report.md") as temporary:
        temporary.write_text(demo_page(report, answers), encoding="utf-8")
    _show(console, report, answers, output)
    return report


def _show(console: Console, report: dict[str, Any], answers: list[tuple[str, str, str]], output: Path) -> None:
    table = Table("prompt", "base", "expert")
    for row in answers:
        table.add_row(*(" ".join(text.split()) for text in row))
    console.print(table)
    console.print(
        f"held-out problems: base {report['base_accuracy']:.1%}, expert {report['expert_accuracy']:.1%} "
        f"(n = {report['n']}, McNemar p = {report['p_value']:.2g}) with {report['parameters']:,} parameters;\n"
        f"always giving the most common answer: {report['constant_accuracy']:.1%}\nsee {output / 'report.md'}",
        highlight=False,
    )
