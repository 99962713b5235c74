"""Telling domains apart, as a domain to train a classification expert on (arXiv 2501.06252, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, get_args

from dispatch.base import question
from dispatch.prompt import category_question
from experts.domains import KINDS, Completion, Domain, Split, text_of
from experts.domains.judges.rewards import exact
from experts.outside.errors import UserError
from selfadapt.recipes.configuration import Choice, find_recipe, make, read_yaml

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Classification:
    """Prompts of several domains, asked about as the prompt dispatcher asks; the answer is the domain's name.

    A split takes the same number of rows from the same split of each domain.
    """

    recipes: list[str]
    """The domains' recipes, in the order of the library's experts: files, or shipped recipes."""
    name: str = "classifier"
    description: str = "Naming the domain that a prompt belongs to."
    train_size: int = 2000
    validation_size: int = 256
    test_size: int = 512
    instructions: bool = True
    """Whether prompts keep what their domains say about the form of an answer, which says much about the domain."""
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.recipes) < 2:
            raise UserError(f"{self.name}: recipes must name at least two recipes, whose domains are to be told apart")

    @property
    def answers(self) -> list[str]:
        """The domains' names, all that a completion may say."""
        return [domain.name for domain in self._domains()]

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt` and `answer`, in a random order."""
        from datasets import Dataset

        domains = self._domains()
        categories = {domain.name: domain.description for domain in domains}
        size = dict(zip(get_args(Split), (self.train_size, self.validation_size, self.test_size), strict=True))[split]
        rows = []
        for domain in domains:
            own = domain.load(split)
            for row in own.select(range(min(len(own), -(-size // len(domains))))):
                turn = {"role": "user", "content": category_question(categories, question(row["prompt"]))}
                rows.append({"id": row["id"], "prompt": [turn], "answer": domain.name})
        Random(f"{split} {self.seed}").shuffle(rows)
        return Dataset.from_list(rows)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion is the domain's name and nothing else."""
        return [
            exact(text_of(completion), answer)
            for completion, answer in zip(completions, columns["answer"], strict=True)
        ]

    def _domains(self) -> list[Domain]:
        domains: list[Any] = [read_domain(find_recipe(recipe)) for recipe in self.recipes]
        if self.instructions:
            return domains
        return [replace(domain, instruction="") if hasattr(domain, "instruction") else domain for domain in domains]


@dataclass(frozen=True)
class _DomainOfRecipe:
    """The part of another expert's recipe that is read: a domain of `experts.domains`, not a classification."""

    domain: Annotated[Any, Choice("kind", KINDS, noun="domain")]


def read_domain(path: Path) -> Domain:
    """The domain of an expert's recipe; raises UserError, as `make` does."""
    document = read_yaml(path)
    block = {"domain": document["domain"]} if isinstance(document, dict) and "domain" in document else document
    return make(_DomainOfRecipe, block, path).domain
