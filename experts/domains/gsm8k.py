"""Grade-school mathematics: GSM8K (arXiv 2110.14168)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.final_numbers import CALCULATION, final_line, find_number
from experts.domains.judges.rewards import last_number
from experts.domains.published import Fields, Source, load_published
from experts.outside.errors import check_whole
from experts.outside.fields import added

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE = Source("gsm8k", "openai/gsm8k", "question", configs=("main",))
MARK = "####"


@dataclass(frozen=True)
class Gsm8k:
    """Word problems with a worked solution and a whole number as the answer.

    The number after the last `####` counts: the first one if the line opens with it. Without this mark, it is what
    `find_number` takes for the answer, as a rule the last number of the text.

    Validation is a tenth of the train rows, because there is no official one; so is test if the data at hand have no
    test split (`experts.domains.published`).
    """

    name: str = "gsm8k"
    description: str = "Grade-school mathematics word problems."
    path: str | None = None
    """A local file or folder with the published fields, instead of `$SELFADAPT_DATA` or the hub."""
    instruction: str = 'Reason step by step. Give the final answer as a number on the last line, after "####".'
    """Follows the question after a blank line."""
    shots: int = added(0, repr=False)
    """The number of solved examples from train that precede every prompt, as turns of the chat."""

    published_as: ClassVar = SOURCE.hub

    def __post_init__(self) -> None:
        check_whole("shots", self.shots, least=0)

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` and `solution`, the worked solution that ends in `#### answer`.

        Raises:
            UserError: as `load_published` does.
        """
        return load_published(SOURCE, self.path, split, self._row, self.shots)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion's final number is the one in the column `answer`."""
        return [
            last_number(final_line(text_of(completion), MARK), answer)
            for completion, answer in zip(completions, columns["answer"], strict=True)
        ]

    def _row(self, fields: Fields) -> dict[str, Any]:
        solution = CALCULATION.sub("", fields["answer"])
        answer = find_number(solution.partition(MARK)[2])
        if not answer:
            raise ValueError(f"the field 'answer' must end in '{MARK} number'")
        return {
            "prompt": [{"role": "user", "content": with_instruction(fields["question"], self.instruction)}],
            "answer": answer,
            "solution": solution,
        }
