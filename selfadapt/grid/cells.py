"""The cells of a grid: each carries what it needs, and returns its results as lines."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from dispatch import FEW_SHOT
from dispatch.few_shot import Search, search
from dispatch.text_to_lora import PREFIX as WRITTEN
from experts.domains import Domain, scores_of
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.svf.fingerprint import fingerprint
from experts.training.evaluation import Problems, held_out_scores
from experts.training.log import Log
from experts.training.run import is_begun
from experts.training.statistics import accuracy, constant_answer
from experts.training.trainer import LoadedBase
from selfadapt.base_models import BaseOptions, load_base
from selfadapt.grid.memory import PeakMemory
from selfadapt.grid.results import BASE, Line, chosen_rate
from selfadapt.recipes import Recipe, train_recipe
from selfadapt.recipes.base import BaseBlock
from selfadapt.two_pass import SelfAdaptiveModel

EXAMPLES = 10
"""The first training rows of an unseen domain, which the few-shot search may look at."""


@dataclass(frozen=True)
class Evaluation:
    """The first `size` rows of a domain's test split, answered greedily."""

    domain: Domain
    max_new_tokens: int
    size: int

    @property
    def search(self) -> Search:
        """How a few-shot mixture for the domain is searched for."""
        return Search(max_new_tokens=self.max_new_tokens)

    def rows(self) -> Dataset:
        """The first `size` rows of the domain's test split."""
        rows = self.domain.load("test")
        return rows.select(range(min(self.size, len(rows))))

    def scores(self, model: Any, tokenizer: Any, rows: Dataset, mixture: Mixture | None = None) -> list[float]:
        """Scores in [0, 1] of the model's answer to each row, under the row's own mixture if there is one."""
        problems = Problems(self.domain, rows, self.max_new_tokens)
        return held_out_scores(model, tokenizer, problems, mixture=mixture)


def settings_of(made_by: Any, evaluations: Sequence[Evaluation]) -> str:
    """A hash of everything that a cell's results depend on."""
    # What later versions added is hashed only where it is used, so that older results remain valid.
    asked = [
        f"{evaluation!r} after {shots} shots" if (shots := getattr(evaluation.domain, "shots", 0)) else repr(evaluation)
        for evaluation in evaluations
    ]
    text = json.dumps([made_by, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_settings(model: str, dtype: str | None, base: BaseBlock, evaluations: Sequence[Evaluation]) -> str:
    """`settings_of` the base's own answers."""
    options = base.options()
    return settings_of([model, dtype, *([options] if options else [])], evaluations)


@dataclass(frozen=True)
class Cell:
    """The base, evaluated on one domain; also what all other cells have in common."""

    method: str
    model: str
    dtype: str | None
    """The base's, as in a recipe."""
    base: BaseBlock
    """As in a recipe."""
    evaluations: Mapping[str, Evaluation]
    """What the cell is evaluated on, by name."""
    settings: str
    """A hash of everything that the cell's results depend on."""

    @property
    def base_options(self) -> BaseOptions:
        """How the base is loaded."""
        return {"dtype": self.dtype, **self.base.options()}

    @property
    def name(self) -> str:
        """As `Line.cell`."""
        return self.line().cell

    def line(self) -> Line:
        """What is known of the cell's results before it runs."""
        return Line(
            method=self.method,
            trained_on=None,
            learning_rate=None,
            seed=0,
            evaluated_on=next(iter(self.evaluations)),
            settings=self.settings,
            model=self.model,
        )

    def is_needed(self, lines: Sequence[Line]) -> bool | None:
        """Whether the cell is part of the grid; None while that still depends on other cells."""
        return True

    def run(self, folder: Path, lines: Sequence[Line]) -> list[Line]:
        """Runs the cell; returns one line per evaluation.

        Args:
            folder: where what the cell trains is kept.
            lines: the results of other cells so far.
        """
        ((_, evaluation),) = self.evaluations.items()
        base, tokenizer = load_base(self.model, **self.base_options)
        rows = evaluation.rows()
        scores = evaluation.scores(base, tokenizer, rows)
        return [scored(replace(self.line(), fingerprint=fingerprint(base)), rows, scores)]


@dataclass(frozen=True)
class DispatchedCell(Cell):
    """The experts of a library on one domain, as a dispatcher, a few-shot search, or an expert's name mixes them."""

    library: ExpertLibrary
    reference: bool = False
    """Whether the other dispatchers are tested against it."""

    def line(self) -> Line:
        """As `Cell.line`."""
        return replace(super().line(), reference=self.reference)

    def run(self, folder: Path, lines: Sequence[Line]) -> list[Line]:
        """As `Cell.run`."""
        ((_, evaluation),) = self.evaluations.items()
        few_shot = self.method == FEW_SHOT
        adaptive = SelfAdaptiveModel.from_pretrained(
            self.model,
            self.library,
            "none" if few_shot else self.method,
            **self.base_options,
        )
        rows, line = evaluation.rows(), self.line()
        if few_shot:
            start = time.perf_counter()
            mixture = self._search(adaptive, evaluation).expand(len(rows))
            line = replace(line, train_seconds=round(time.perf_counter() - start, 1))
        else:
            mixture = adaptive.dispatch(list(rows["prompt"]))
        scores = evaluation.scores(adaptive.model, adaptive.tokenizer, rows, mixture)
        line = replace(line, mixture=_mean_weights(mixture), fingerprint=fingerprint(adaptive.model))
        return [scored(line, rows, scores)]

    def _search(self, adaptive: SelfAdaptiveModel, evaluation: Evaluation) -> Mixture:
        """The mixture that suits the first training rows of the domain."""
        train = evaluation.domain.load("train")
        return search(
            cast(NativeEngine, adaptive.engine),
            self.library.names,
            list(train.select(range(min(EXAMPLES, len(train))))),
            partial(scores_of, evaluation.domain),
            evaluation.search,
        ).mixture


@dataclass(frozen=True)
class TrainedCell(Cell):
    """One training run, evaluated on its own domain and on the unseen ones."""

    recipe: Recipe
    trained_on: str
    reference: bool
    """Whether the other methods are tested against it."""
    rates: frozenset[float]
    """The candidates for the learning rate of this method on this domain."""
    first_seed: int
    """The seed that chooses among them."""

    @property
    def seed(self) -> int:
        return self.recipe.training.seed

    @property
    def learning_rate(self) -> float:
        return self.recipe.training.learning_rate

    @property
    def waits(self) -> bool:
        """Whether other cells choose its learning rate."""
        return self.seed != self.first_seed and len(self.rates) > 1

    def line(self) -> Line:
        """As `Cell.line`."""
        return replace(
            super().line(),
            trained_on=self.trained_on,
            learning_rate=self.learning_rate,
            seed=self.seed,
            reference=self.reference,
        )

    def is_needed(self, lines: Sequence[Line]) -> bool | None:
        """A later seed is needed only at the learning rate that the first one chooses."""
        if not self.waits:
            return True
        tried = [line for line in lines if (line.method, line.trained_on) == (self.method, self.trained_on)]
        if self.rates - {line.learning_rate for line in tried if line.seed == self.first_seed}:
            return None
        return self.learning_rate == chosen_rate(tried)

    def run(self, folder: Path, lines: Sequence[Line]) -> list[Line]:
        """As `Cell.run`; goes on with a run that has begun in `folder`."""
        with PeakMemory() as memory:
            base, tokenizer = load_base(self.model, **self.base_options)
            base_fingerprint = fingerprint(base)
            result = train_recipe(
                self.recipe,
                LoadedBase(base, tokenizer, self.model),
                self.recipe.run(folder, resume=is_begun(folder, self.recipe.to_dict()), replace=True),
                self._base_scores(lines),
            )
        document = self.recipe.to_dict()
        validation = Log(folder / "training_log.jsonl").accuracies()[result.best_step]
        line = replace(
            self.line(),
            adapter=document["adapt"].get("method", "svf"),
            objective=document["training"].get("objective", "reinforce"),
            fingerprint=base_fingerprint,
            validation_right=validation.right,
            validation_n=validation.n,
            best_step=result.best_step,
            parameters=result.parameters,
            train_seconds=round(result.train_seconds, 1),
            peak_memory=memory.mib,
        )
        results = []
        for name, evaluation in self.evaluations.items():
            rows = evaluation.rows()
            own = name == self.trained_on  # the training has answered the same rows
            scores = result.expert_scores if own else evaluation.scores(result.model, tokenizer, rows)
            results.append(scored(replace(line, evaluated_on=name), rows, scores))
        return results

    def _base_scores(self, lines: Sequence[Line]) -> list[float] | None:
        """The base's scores on the items of the trained domain, if it has answered them already."""
        settings = base_settings(self.model, self.dtype, self.base, [self.evaluations[self.trained_on]])
        own = (BASE, self.trained_on, settings, None)
        known = [line for line in lines if (line.method, line.evaluated_on, line.settings, line.error) == own]
        return [float(digit) for digit in known[0].scores] if known else None


def scored(line: Line, rows: Dataset, scores: Sequence[float]) -> Line:
    """The line with the scores of an evaluation's rows."""
    result = accuracy(scores)
    items = hashlib.sha256(repr([rows["id"][:], rows["prompt"][:]]).encode()).hexdigest()[:12]
    return replace(
        line,
        scores="".join("1" if score >= 1 else "0" for score in scores),
        items=items,
        right=result.right,
        n=result.n,
        constant=constant_answer(rows["answer"]).right,
    )


def _mean_weights(mixture: Mixture) -> dict[str, float]:
    """The mean weight of each expert over the rows; experts that a network has written count as one."""
    weights: dict[str, float] = {}
    for name, weight in zip(mixture.names, mixture.weights.mean(0).tolist(), strict=True):
        name = "written" if name.startswith(WRITTEN) else name
        weights[name] = weights.get(name, 0.0) + weight
    return weights
