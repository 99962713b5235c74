"""Everyday one-step word problems: domains in natural language that come with the package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.comparisons import names_who
from experts.domains.judges.rewards import last_number
from experts.outside.errors import UserError, unknown

if TYPE_CHECKING:
    from datasets import Dataset

Problems = Literal["sums", "products", "relations", "comparisons"]

# Each with what it asks for: x + y, x − y, x · y, or who has more or fewer, with x ≥ y.
STORIES = {
    "sums": [
        ("{a} has {x} {things}. {b} gives {a} {y} more. How many {things} does {a} have now?", "+"),
        ("There are {x} {things} on the table. {a} puts {y} more there. How many {things} are on the table?", "+"),
        ("{a} finds {x} {things} and {b} finds {y}. How many {things} did they find together?", "+"),
        ("{a} bought {x} {things} yesterday and {y} today. How many {things} did {a} buy in all?", "+"),
        ("{a} had {x} {things} and lost {y} of them. How many {things} does {a} still have?", "-"),
        ("There were {x} {things} in the box. {a} took {y} out. How many {things} are left in the box?", "-"),
        ("{a} has {x} {things}, {b} has {y}. How many more {things} does {a} have than {b}?", "-"),
        ("{a} needs {x} {things} and has {y}. How many {things} are missing?", "-"),
    ],
    "products": [
        ("There are {y} boxes with {x} {things} in each. How many {things} are there in all?", "*"),
        ("{a} buys {y} bags of {x} {things} each. How many {things} does {a} buy?", "*"),
        ("{a} lays out {y} rows of {x} {things}. How many {things} are there?", "*"),
        ("{a} finds {x} {things} every day. How many {things} does {a} find in {y} days?", "*"),
    ],
    "relations": [
        ("{a} has {x} {things}. {b} has {y} more than {a}. How many {things} does {b} have?", "+"),
        ("{a} found {x} {things}, and {b} found {y} more. How many {things} did {b} find?", "+"),
        ("{a} has {x} {things}. {b} has {y} fewer than {a}. How many {things} does {b} have?", "-"),
        ("{a} found {x} {things}, and {b} found {y} fewer. How many {things} did {b} find?", "-"),
        ("{a} has {x} {things}. {b} has {y} times as many. How many {things} does {b} have?", "*"),
        ("{a} found {x} {things}, and {b} found {y} times as many. How many {things} did {b} find?", "*"),
    ],
    "comparisons": [
        ("{a} has {x} {things} and {b} has {y}. Who has more {things}?", "a"),
        ("{b} has {y} {things} and {a} has {x}. Who has more {things}?", "a"),
        ("{a} found {x} {things}, {b} found {y}. Who found fewer {things}?", "b"),
        ("{b} found {y} {things}, {a} found {x}. Who found fewer {things}?", "b"),
    ],
}
PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Mia Noah Olga Paul"
THINGS = "apples books buttons cards coins eggs flowers marbles pencils shells stamps stones"


@dataclass(frozen=True)
class WordProblems:
    """Stories of one or two people and their things. The last number of an answer counts, or the person it names.

    Each split has its own seed, made from its name and `seed`. Test is generated first, then validation, then train,
    and a question that occurred before is dropped.
    """

    name: str
    description: str
    problems: Problems = "sums"
    instruction: str = ""
    """Follows the question after a blank line."""
    smallest: int = 2
    largest: int = 9
    train_size: int = 10_000
    validation_size: int = 256
    test_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.problems not in STORIES:
            raise unknown("kind of word problem", self.problems, STORIES)
        if not 0 <= self.smallest < self.largest:
            raise UserError(f"{self.name}: smallest must be at least 0 and below largest")

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt` and `answer`; for comparisons also `question`, which their reward reads."""
        from datasets import Dataset

        asked: set[str] = set()
        for part in ("test", "validation", "train"):
            rows = list(self._rows(part, asked))
            if part == split:
                return Dataset.from_list(rows)
        raise unknown("split", split, get_args(Split))

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion ends in the number in the column `answer`, or says that it is the person there."""
        texts = [text_of(completion) for completion in completions]
        if self.problems != "comparisons":
            return [last_number(text, answer) for text, answer in zip(texts, columns["answer"], strict=True)]
        questions = columns.get("question") or texts  # who the two are, and whether fewer was asked for
        asked = zip(texts, columns["answer"], questions, strict=True)
        return [self._names_who(text, answer, question) for text, answer, question in asked]

    def _names_who(self, text: str, answer: str, question: str) -> float:
        people = PEOPLE.split()
        others = [name for name in re.findall("|".join(people), question) if name != answer]
        other = others[0] if others else next(name for name in people if name != answer)
        return names_who(text, answer, other, people, fewer=question is not text and "fewer" in question)

    def _rows(self, split: Split, asked: set[str]) -> Iterator[dict[str, Any]]:
        """Yields the split's problems that are not in `asked`; adds their questions to it."""
        random = Random(f"{split} {self.seed}")
        size = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]
        for index in range(size):
            story, wanted = random.choice(STORIES[self.problems])
            y, x = sorted(random.sample(range(self.smallest, self.largest + 1), 2))
            a, b = random.sample(PEOPLE.split(), 2)
            question = story.format(a=a, b=b, x=x, y=y, things=random.choice(THINGS.split()))
            answer = {"+": x + y, "-": x - y, "*": x * y, "a": a, "b": b}[wanted]
            if question not in asked:
                asked.add(question)
                yield {
                    "id": f"{self.name}-{split}-{index}",
                    "prompt": [{"role": "user", "content": with_instruction(question, self.instruction)}],
                    "answer": str(answer),
                    **({"question": question} if self.problems == "comparisons" else {}),
                }
