"""Competition mathematics: MATH (arXiv 2103.03874)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.rewards import math_verify
from experts.domains.published import Fields, Source, load_published
from experts.outside.errors import check_whole
from experts.outside.fields import added

if TYPE_CHECKING:
    from datasets import Dataset

SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)
SOURCE = Source("math", "EleutherAI/hendrycks_math", "problem", configs=SUBJECTS)


@dataclass(frozen=True)
class HendrycksMath:
    r"""Competition problems whose answer is an expression, in the solution's last `\boxed{}`.

    Validation is a tenth of the train rows, because there is no official one; so is test if the data at hand have no
    test split (`experts.domains.published`).
    """

    name: str = "math"
    description: str = "Competition mathematics problems whose answer is a formula or a number."
    path: str | None = None
    """A local file or folder with the published fields, instead of `$SELFADAPT_DATA` or the hub."""
    instruction: str = r"Reason step by step, and put the final answer within \boxed{}."
    """Follows the problem after a blank line."""
    shots: int = added(0, repr=False)
    """The number of solved examples from train that precede every prompt, as turns of the chat."""

    published_as: ClassVar = SOURCE.hub

    def __post_init__(self) -> None:
        check_whole("shots", self.shots, least=0)

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` (LaTeX) and `solution`.

        Raises:
            UserError: as `load_published` does.
        """
        return load_published(SOURCE, self.path, split, self._row, self.shots)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion's final expression equals the column `answer`, as math-verify judges it."""
        return [
            math_verify(text_of(completion), answer)
            for completion, answer in zip(completions, columns["answer"], strict=True)
        ]

    def _row(self, fields: Fields) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": with_instruction(fields["problem"], self.instruction)}],
            "answer": last_boxed(fields["solution"]),
            "solution": fields["solution"],
        }


def last_boxed(solution: str) -> str:
    r"""The content of the last `\boxed{…}`, whose braces may be nested, or of the short form `\boxed 5`.

    Raises:
        ValueError: if there is none.

    >>> last_boxed(r"so \boxed{1}, or rather $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    _, mark, rest = solution.replace(r"\fbox", r"\boxed").rpartition(r"\boxed")
    if not mark:
        raise ValueError(r"the field 'solution' must hold a \boxed{answer}")
    if not rest.startswith("{"):
        return rest.split("$")[0].strip(" .")
    depth = 0
    for index, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:index]
    raise ValueError(r"the field 'solution' has a \boxed{ that is never closed")
