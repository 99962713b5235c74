"""`selfadapt demo`: trains an expert on the built-in base and shows what has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from experts.engine import NativeEngine
from experts.outside.files import atomic_file, check_writable, write_json
from experts.training.run import unfinished_folder
from experts.training.trainer import LoadedBase
from selfadapt.base_models import load_base
from selfadapt.recipes import find_recipe, read_recipe, train_recipe

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
    result = train_recipe(
        recipe, LoadedBase(base, tokenizer, recipe.model), recipe.run(expert, resume=unfinished.exists(), replace=True)
    )
    report = {
        **result.comparison(),
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
        temporary.write_text(_page(report, answers), encoding="utf-8")
    _show(console, report, answers, output)
    return report


def lora_parameters(base: nn.Module) -> int:
    """The size of the paper's baseline for this base: a rank-16 LoRA on the query and value projections."""
    return sum(
        16 * sum(module.weight.shape)
        for name, module in base.named_modules()
        if name.endswith((".q_proj", ".v_proj")) and hasattr(module, "weight")
    )


def _page(report: dict[str, Any], answers: Sequence[tuple[str, str, str]]) -> str:
    """`report.md`: the figures of a demo, its curve, and (prompt, base's answer, expert's answer) side by side."""

    def percent(key: str) -> str:
        low, high = report[f"{key}_interval"]
        return f"{report[f'{key}_accuracy']:.1%} ({low:.1%} to {high:.1%})"

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    rows = "\n".join(f"| {cell(prompt)} | {cell(before)} | {cell(after)} |" for prompt, before, after in answers)
    return f"""# {report["domain"]}

{report["description"]}

| | greedy, {report["n"]} held-out problems (95 % Wilson interval) |
|---|---|
| base | {percent("base")} |
| expert | {percent("expert")} |
| always the most common answer | {report["constant_accuracy"]:.1%} |

Exact McNemar test: p = {report["p_value"]:.2g}. The expert has {report["parameters"]:,} parameters, a rank-16 LoRA on
the query and value projections would have {report["lora_parameters"]:,}. It was trained in
{report["train_seconds"]:.0f} seconds; seed {report["seed"]}.

![training curve]({report["domain"]}/curve.png)

| prompt | base | expert |
|---|---|---|
{rows}
"""


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
