"""What goes into an expert's folder: the adapter, its model card (README.md) and its training curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from peft.utils import PeftType

from experts.outside.adapters import write_description
from experts.outside.base_names import public_name
from experts.outside.cards import model_card, share_right
from experts.outside.plots import GREY, mark, percent, picture, plot_intervals
from experts.svf import SVFConfig
from experts.svf.fingerprint import Sketch, write_sketch
from experts.training.log import duration
from experts.training.statistics import Accuracy, Loss


@dataclass(frozen=True)
class Origin:
    """The base that an adapter was trained on, and what it was trained for."""

    base: str
    """The base's name."""
    fingerprint: str
    sketch: Sketch
    description: str
    domain: str | None = None


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as cards have it."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def write_trained(folder: Path, model: PeftModel, origin: Origin, card: Card | str) -> None:
    """Writes the active adapter of `model` and its card into an existing folder."""
    config: Any = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = public_name(origin.base)
    if isinstance(config, SVFConfig):
        config.base_fingerprint = origin.fingerprint
        config.domain = origin.domain
        config.description = origin.description
        write_sketch(folder, origin.sketch)
    elif config.peft_type == PeftType.LORA and origin.description:
        write_description(folder, origin.description)
    # The embeddings are never adapted; PEFT would ask the hub about their size.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    text = card if isinstance(card, Card) else model_card(card, origin.base, [PeftType(config.peft_type).value.lower()])
    (folder / "README.md").write_text(str(text), encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """The facts about one expert. Every figure was measured by the run that made the expert."""

    name: str
    origin: Origin
    recipe: Mapping[str, Any]
    parameters: int
    best_step: int
    train_seconds: float
    validations: Mapping[int, Accuracy | Loss | float]
    base_accuracy: Accuracy | Loss
    expert_accuracy: Accuracy | Loss
    constant_accuracy: Accuracy
    """The score of always giving the most common right answer."""
    peft_type: str = "SVF"
    objective: str = "REINFORCE"
    dataset: str | None = None
    """The hub's id of the data set that the domain is made from, if it has one."""

    @property
    def _what(self) -> str:
        if self.peft_type == "SVF":
            return f"An SVF expert (arXiv 2501.06252): {self.parameters:,} multipliers of singular values"
        return f"A PEFT adapter ({self.peft_type}): {self.parameters:,} parameters"

    @property
    def _loaded(self) -> list[str]:
        """The arguments with which `load_base` loads exactly this base."""
        options = self.recipe.get("base", {})
        return [
            f"{name}={options[name]!r}" for name in ("revision", "trust_remote_code", "quantization") if name in options
        ]

    def __str__(self) -> str:
        base, original = self.origin.base, public_name(self.origin.base)
        rounding = "" if original == base else f"a rounding of the hub's `{original}`, "
        adapter = "expert" if self.peft_type == "SVF" else "adapter"
        results = f"| base | {self.base_accuracy} |\n| {adapter} | {self.expert_accuracy} |"
        measured, held_out = "loss", "held-out rows of the test split | their answers"
        if isinstance(self.base_accuracy, Accuracy):
            results += f"\n| always the most common answer | {self.constant_accuracy} |"
            measured, held_out = "right", "greedy, held-out problems of the test split | right"
        validations = "\n".join(f"| {step} | {result} |" for step, result in self.validations.items())
        text = f"""# {self.name}

{self.origin.description}

{self._what} for the base `{base}`
({rounding}fingerprint `{self.origin.fingerprint}`), trained by {self.objective} on the domain `{self.origin.domain}`
for {duration(self.train_seconds)}.

| {held_out} |
|---|---|
{results}

Step {self.best_step} is the best on the validation split; the test split played no part in the choice.

![training curve](curve.png)

| step | {measured} on the validation split |
|---|---|
{validations}

## Use

```python
>>> from peft import PeftModel
>>> import experts  # registers SVF with PEFT
>>> from selfadapt import load_base
>>> base, tokenizer = load_base({", ".join([f'"{base}"', *self._loaded])})
>>> model = PeftModel.from_pretrained(base, "path/to/{self.name}")
```

## Recipe

```yaml
{as_yaml(self.recipe)}```
"""
        of_test = []
        if isinstance(self.expert_accuracy, Accuracy):
            of_test = [share_right(self.origin.domain or self.name, self.dataset, self.expert_accuracy.value)]
        return model_card(
            text,
            base,
            [self.peft_type.lower()],
            datasets=None if self.dataset is None else [self.dataset],
            model_name=self.name,
            eval_results=of_test or None,
        )


def plot_curve(entries: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plots the sampled accuracy of each step, if any, and greedy validation accuracy with its 95 % interval, as a PNG;
    for a run that nothing judges, the validation losses."""
    from matplotlib.ticker import MaxNLocator

    sampled = {e["step"]: e["accuracy"] for e in entries if "accuracy" in e}
    losses = {e["step"]: e["validation_loss"] for e in entries if "validation_loss" in e}
    judged = {e["step"]: Accuracy(e["right"], e["n"]) for e in entries if "right" in e}
    color, marker, _ = mark(1)
    with picture(path, 6.5, 3.6) as figure:
        axes = figure.subplots()
        if sampled:
            axes.plot([*sampled], [*sampled.values()], "--", color=GREY, label="sampled while training")
        if losses:
            axes.plot([*losses], [*losses.values()], marker=marker, color=color, label="validation")
            axes.set_ylabel("nats a token")
        else:
            values = [own.value for own in judged.values()]
            intervals = [own.interval for own in judged.values()]
            label = "greedy, validation, with its 95 % interval"
            plot_intervals(axes, [*judged], values, intervals, color=color, marker=marker, label=label)
            axes.set(ylabel="right answers", ylim=(0, 1))
            axes.yaxis.set_major_formatter(percent())
        axes.set(title=title, xlabel="optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2)
