"""`selfadapt demo`: shows two passes with the shipped experts, then trains an expert and compares it with the base."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn

from experts.engine import NativeEngine
from experts.mixture import Mixture
from experts.outside.files import atomic_file, check_writable, write_json
from experts.outside.reading import read_text
from experts.shipped import shipped_library
from experts.training.card import as_yaml
from experts.training.run import unfinished_folder
from experts.training.trainer import LoadedBase
from selfadapt.base_models import load_base
from selfadapt.own_report import check_replaceable, has_report, not_ours
from selfadapt.recipes import Recipe, find_recipe, read_recipe, train_recipe
from selfadapt.two_pass import SelfAdaptiveModel

RECIPE = "smollm2-135m/demo"
REPORTS = ("report.json", "report.md")
REPORTED = ("expert", "domain", "lora_parameters")
"""What a demo's report is known by."""
SHOWN = 5
PROMPTS = [
    "Kate has 8 marbles. Paul gives Kate 7 more. How many marbles does Kate have now?",
    "There are 6 boxes with 7 eggs in each. How many eggs are there in all?",
    "Noah has 6 eggs. Ida has 3 times as many. How many eggs does Ida have?",
    "What is the capital of France?",
]


def demo(output: Path) -> dict[str, Any]:
    """Shows the two passes with the experts that come with the base, if there are any, and trains the expert of
    `RECIPE` in `output`; writes `report.json` and `report.md` there and returns the report.

    An interrupted demo goes on where it stopped; a complete one is run again.

    Raises:
        UserError: if the folder cannot be written, or has something of these names that no demo wrote.
    """
    console = Console(stderr=True)
    recipe = read_recipe(find_recipe(RECIPE))
    new_tokens = recipe.training.max_new_tokens
    expert = output / recipe.domain.name
    unfinished = unfinished_folder(expert)
    check_replaceable(output, REPORTS, REPORTED)
    if not (unfinished.exists() or has_report(output, REPORTED) or _may_be_replaced(expert, recipe)):
        raise not_ours(expert)
    check_writable(output)
    if unfinished.exists():
        console.print("resuming the interrupted demo")
    elif shipped_library(recipe.model) and find_spec("sentence_transformers"):
        _show_two_passes(console, recipe.model, new_tokens)
    console.print(
        f"\n[bold]Now training an expert for `{recipe.domain.name}`[/] from scratch: the base answers, right answers "
        "are reinforced, and only z changes.\nCtrl-C stops it; the same command resumes it.\n",
        highlight=False,
    )
    base, tokenizer = load_base(recipe.model, dtype=recipe.dtype)
    parameters_of_lora = lora_parameters(base)
    run = recipe.run(expert, resume=unfinished.exists(), replace=True, log_completions=True)
    result = train_recipe(recipe, LoadedBase(base, tokenizer, recipe.model), run)
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
    with result.model.disable_adapter():
        before = NativeEngine(result.model, tokenizer).generate(prompts, max_new_tokens=new_tokens)
    after = NativeEngine(result.model, tokenizer).generate(prompts, max_new_tokens=new_tokens)
    answers = list(zip([chat[-1]["content"] for chat in prompts], before, after, strict=True))
    write_json(output / "report.json", report)
    with atomic_file(output / "report.md") as temporary:
        temporary.write_text(_page(report, answers), encoding="utf-8")
    _show(console, report, answers, output)
    return report


def _may_be_replaced(expert: Path, recipe: Recipe) -> bool:
    """Whether nothing is there, or what a demo left that was stopped before its report: its card has the recipe."""
    if not expert.is_dir():
        return not expert.exists()
    card = expert / "README.md"
    return not any(expert.iterdir()) or (card.is_file() and as_yaml(recipe.to_dict()) in read_text(card))


def _show_two_passes(console: Console, name: str, new_tokens: int) -> None:
    """Prints `PROMPTS`, which shipped expert answers each, and what the base alone says."""
    console.print("[bold]One batch, in which each prompt is answered by the expert it is dispatched to:[/]\n")
    model = SelfAdaptiveModel.from_pretrained(name)
    nobody = Mixture.of({}, len(PROMPTS))
    plain = model.engine.generate(PROMPTS, max_new_tokens=new_tokens, mixture=nobody)
    table = Table("prompt", "who", "answers", "the base alone", show_lines=True)
    for prompt, answer, base in zip(PROMPTS, model.generate(PROMPTS, max_new_tokens=new_tokens), plain, strict=True):
        table.add_row(*_cells(prompt, " + ".join(answer.mixture[0]) or "the base", answer.text, base))
    console.print(table)


def _cells(*texts: str) -> list[Text]:
    return [Text(" ".join(text.split())) for text in texts]  # they may hold what rich takes for markup


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

Exact McNemar test: p = {report["p_value"]:.2g}. The expert has {report["parameters"]:,} parameters; a rank-16 LoRA on
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
        table.add_row(*_cells(*row))
    console.print(table)
    console.print(
        f"held-out problems: base {report['base_accuracy']:.1%}, expert {report['expert_accuracy']:.1%} "
        f"(n = {report['n']}, McNemar p = {report['p_value']:.2g}) with {report['parameters']:,} parameters;\n"
        f"always giving the most common answer: {report['constant_accuracy']:.1%}\n"
        f"see {escape(str(output / 'report.md'))}\n",
        highlight=False,
    )
    prompt = '"' + PROMPTS[1] + '"'
    console.print(
        "[bold]What next[/]\n"
        f"  selfadapt generate {prompt}   # two passes; with --dispatch none, the base\n"
        f"  selfadapt experts add {escape(report['expert'])} --library mylib   # a library of your own, for --library\n"
        "  selfadapt play   # a page in the browser: ask, mix, look inside\n"
        "  selfadapt serve   # an OpenAI-compatible server\n"
        "  docs/tutorial.md   # an expert from your own CSV file and your own reward",
        highlight=False,
        soft_wrap=True,
    )
