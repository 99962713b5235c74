"""What an expert is trained on: prompts, and what an answer to one earns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]
Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
Completion = str | Sequence[Message]


class Domain(Protocol):
    """Prompts, a reward, and a one-sentence description."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One sentence that tells a dispatcher which prompts belong here."""

    def load(self, split: Split) -> Dataset:
        """The rows of a split, the same ones every time: at least `id`, `prompt` (a chat) and `answer`.

        Raises:
            UserError: if there are no such rows.
        """

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """A score in [0, 1] for each completion, 1 if it is right; whatever a model wrote, it never raises.

        Args:
            completions: What the model wrote, as text or as messages.
            columns: The columns of `load`'s rows, each as long as `completions`; others are ignored.
        """


def text_of(completion: Completion) -> str:
    """The text of a completion: of its last message, where it is a list of messages.

    >>> text_of([{"role": "assistant", "content": "7"}])
    '7'
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def with_instruction(question: str, instruction: str) -> str:
    """The question, and after a blank line the instruction, if there is one."""
    return f"{question}\n\n{instruction}" if instruction else question
