"""A domain from the user's own file or module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from experts.domains.base import (
    Completion,
    Domain,
    Reward,
    Split,
    answers_of,
    check_domain,
    is_judged,
    load_rows,
    own_reward,
    reinforced,
)
from experts.domains.judges.judge import try_reward
from experts.outside.errors import UserError
from experts.outside.imports import find_object

if TYPE_CHECKING:
    from datasets import Dataset

PARTS = ("name", "description", "load", "reward")


@dataclass(frozen=True)
class Module:
    """A domain that the user's own class or function makes: an object with all of `experts.domains.base.Domain`."""

    path: str
    """`my_domain.py:MyDomain` or `package.module:MyDomain`; the file is relative to the current folder or else to
    `$SELFADAPT_DATA`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The keyword arguments it is called with; in a recipe, all other fields of the block."""

    further: ClassVar = "options"

    @cached_property
    def domain(self) -> Domain:
        """The user's domain.

        Raises:
            UserError: as `find_object` does, or if the call fails or its result lacks a part of a domain.
        """
        try:
            made = find_object(self.path, "domain")(**self.options)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            said = " ".join(str(error).split())
            raise UserError(f"the domain {self.path} failed with {type(error).__name__}: {said}") from error
        for part in PARTS:
            if not hasattr(made, part):
                raise UserError(f"the domain {self.path} has no {part!r}; a domain has {', '.join(PARTS)}")
        return made

    def __getstate__(self) -> dict[str, Any]:
        # Another process runs the user's file anew.
        return {"path": self.path, "options": self.options}

    @property
    def name(self) -> str:
        return self.domain.name

    @property
    def description(self) -> str:
        return self.domain.description

    @property
    def answers(self) -> Sequence[str]:
        return answers_of(self.domain)

    @property
    def own_reward(self) -> str | None:
        return own_reward(self.domain)

    @property
    def is_judged(self) -> bool:
        return is_judged(self.domain)

    @property
    def reinforced(self) -> list[Reward]:
        return reinforced(self.domain)

    def check(self) -> None:
        """Raises UserError as `domain`, the domain's own check, and `try_reward` on the training rows do."""
        check_domain(self.domain)
        try:
            rows = load_rows(self.domain, "train")
        except (UserError, OSError):
            return  # training reports it; a domain for evaluation needs no training rows
        for reward in reinforced(self.domain) if is_judged(self.domain) else ():
            try_reward(rows, reward)

    def load(self, split: Split) -> Dataset:
        """The rows of the user's domain."""
        return self.domain.load(split)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """The scores of the user's domain."""
        return self.domain.reward(completions, **columns)
