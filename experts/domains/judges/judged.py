"""What the domains made of a user's own rows share: who says what is right, and what training reinforces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

from experts.domains.base import Completion, Domain, Reward
from experts.domains.judges.judge import (
    check_judge,
    check_name,
    finds_right,
    is_ready,
    judged,
    named,
    spoken_of,
)
from experts.outside.errors import UserError


class Judged:
    """A domain with the fields `judged_by`, `rewards` and `reward_weights`.

    `judged_by` alone says what is right, and is reinforced together with the rewards; without it, the weighted sum of
    the rewards does both. A judge is a ready reward, the place of a function, or a reward model.
    """

    name: str
    judged_by: str | None
    rewards: list[str]
    reward_weights: list[float] | None

    also_called: ClassVar[Mapping[str, str]] = {"reward": "judged_by"}

    @staticmethod
    def in_our_names(block: dict[str, Any]) -> dict[str, Any]:
        """A recipe's block with `reward` renamed to `rewards` if it names several or stands beside `judged_by`."""
        given = block.get("reward")
        several = isinstance(given, list) and (len(given) != 1 or "reward_weights" in block)
        beside = "judged_by" in block and not (isinstance(given, str) and is_ready(given))
        if "rewards" in block or not (several or (given is not None and beside)):
            return {**block, "reward": given[0]} if isinstance(given, list) and len(given) == 1 else block
        rest = {name: value for name, value in block.items() if name != "reward"}
        return {**rest, "rewards": given if isinstance(given, list) else [given]}

    @property
    def judges(self) -> list[str]:
        """The judges of all that training reinforces."""
        return [*([self.judged_by] if self.judged_by else []), *self.rewards]

    @property
    def is_judged(self) -> bool:
        return bool(self.judges)

    @property
    def own_reward(self) -> str | None:
        right = [self.judged_by] if self.judged_by else self.rewards
        return None if not right or (len(right) == 1 and is_ready(right[0])) else ", ".join(right)

    @property
    def reinforced(self) -> list[Reward]:
        """The rewards, in the order of their weights."""
        weights = self.reward_weights or [1.0] * len(self.judges)
        names = [named(judge) for judge in self.judges]
        return [
            Reward(
                judge if names.count(name) > 1 else name,
                spoken_of(judge),
                partial(self._judged, judge),
                is_ready(judge),
                weight,
                judges=judge == self.judged_by or len(self.judges) == 1,
            )
            for judge, name, weight in zip(self.judges, names, weights, strict=True)
        ]

    def check(self) -> None:
        """Raises UserError as `check_judge` does, for each judge."""
        for judge, reward in zip(self.judges, self.reinforced, strict=True):
            check_judge(cast(Domain, self), judge, reward)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> Any:
        """What `judged_by` gives each completion or, without it, the weighted sum of the rewards.

        A ready reward needs the columns `answer` and `choices`; other judges need whatever they read.
        """
        if self.judged_by or len(self.rewards) == 1:
            return judged(self.judged_by or self.rewards[0], completions, columns)
        if not self.rewards:
            raise UserError(f"{self.name}: nothing says which answers are right; give judged_by, or a reward")
        scores = [(reward.weight, reward.scores(completions, **columns)) for reward in self.reinforced]
        return [total([(weight, own[row]) for weight, own in scores]) for row in range(len(completions))]

    def finds_right(self, answer: str, choices: Sequence[str]) -> str | None:
        """A judge that would not find a row's own answer right, if there is one."""
        return next((judge for judge in self.judges if not finds_right(judge, answer, choices)), None)

    def _judged(self, judge: str, completions: Sequence[Completion], **columns: Any) -> Any:
        return judged(judge, completions, columns)

    def _check_judges(self) -> None:
        """Raises UserError for names that mean nothing, or if there is not one weight per judge."""
        for judge in self.judges:
            check_name(judge)
        if twice := [judge for judge in self.judges if self.judges.count(judge) > 1]:
            raise UserError(f"the reward {twice[0]} is listed twice; remove one of the two")
        if self.reward_weights is None:
            return
        if len(self.reward_weights) != len(self.judges) or not all(map(math.isfinite, self.reward_weights)):
            order = ", ".join(self.judges) or "none"
            raise UserError(f"reward_weights must be numbers, one for each of: {order}")

    @property
    def needs_answers(self) -> list[str]:
        """The judges that compare with a row's answer and cannot do without it."""
        return [judge for judge in self.judges if is_ready(judge)]


def total(scores: Sequence[tuple[float, float]]) -> float:
    """The weighted sum of (weight, score) pairs, as in TRL: no opinion (NaN) is left out, and NaN if nothing remains.

    >>> total([(2.0, 1.0), (1.0, math.nan)]), total([(1.0, math.nan)])
    (2.0, nan)
    """
    opinions = [weight * score for weight, score in scores if not math.isnan(score)]
    return math.fsum(opinions) if opinions else math.nan
