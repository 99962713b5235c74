"""Base and expert on the same held-out problems, as figures and as a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from experts.training.statistics import Accuracy, accuracy, mcnemar


def lora_parameters(base: nn.Module) -> int:
    """The size of the paper's baseline for this base: a rank-16 LoRA on the query and value projections."""
    return sum(
        16 * sum(module.weight.shape)
        for name, module in base.named_modules()
        if name.endswith((".q_proj", ".v_proj")) and hasattr(module, "weight")
    )


def comparison(base_scores: Sequence[float], expert_scores: Sequence[float], constant: Accuracy) -> dict[str, Any]:
    """Accuracies with 95 % Wilson intervals and the exact McNemar p-value, on the same `n` problems.

    `constant` is what always giving the most common right answer would score on them.
    """
    base, expert = accuracy(base_scores), accuracy(expert_scores)
    return {
        "base_accuracy": base.value,
        "base_interval": base.interval,
        "expert_accuracy": expert.value,
        "expert_interval": expert.interval,
        "constant_accuracy": constant.value,
        "n": base.n,
        "p_value": mcnemar(base_scores, expert_scores),
    }


def demo_page(report: dict[str, Any], answers: Sequence[tuple[str, str, str]]) -> str:
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
