"""Published multiple-choice questions: ARC, BoolQ, HellaSwag, OpenBookQA, PIQA, WinoGrande."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.rewards import choice
from experts.domains.published import Fields, Source, load_published
from experts.outside.errors import check_whole, unknown
from experts.outside.fields import added

if TYPE_CHECKING:
    from datasets import Dataset

ChoiceKind = Literal["arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande"]
Question = tuple[str, list[str], int]
"""What is asked, the choices, and the index of the right one."""


@dataclass(frozen=True)
class _Published:
    source: Source
    description: str
    read: Callable[[Fields], Question]
    lettered: bool = True
    """Whether choices are listed by letter; otherwise they are words that answer the question, and are not listed."""


def _science(fields: Fields) -> Question:
    labels = list(fields["choices"]["label"])
    if fields["answerKey"] not in labels:
        raise ValueError(f"the field 'answerKey' must be one of {', '.join(labels)}")
    return fields["question"], list(fields["choices"]["text"]), labels.index(fields["answerKey"])


def _open_book(fields: Fields) -> Question:
    return _science({**fields, "question": fields["question_stem"]})


def _yes_or_no(fields: Fields) -> Question:
    question = fields["question"].rstrip("? ")
    return f"{fields['passage']}\n\n{question[:1].upper()}{question[1:]}?", ["Yes", "No"], 0 if fields["answer"] else 1


def _endings(fields: Fields) -> Question:
    begun = _plain(f"{fields['activity_label']}: {fields['ctx']}")
    return f"{begun}\n\nHow does this go on?", [_plain(ending) for ending in fields["endings"]], int(fields["label"])


def _plain(text: str) -> str:
    """The text without the marks of WikiHow's headings, "[title]" and the like, as lm-eval shows it."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ").strip()


def _two_ways(fields: Fields) -> Question:
    return fields["goal"], [fields["sol1"], fields["sol2"]], int(fields["label"])


def _gap(fields: Fields) -> Question:
    if fields["answer"] not in ("1", "2"):
        raise ValueError("the field 'answer' must be 1 or 2")
    asked = f"{fields['sentence']}\n\nWhat belongs in the place of the _?"
    return asked, [fields["option1"], fields["option2"]], int(fields["answer"]) - 1


DATASETS: dict[str, _Published] = {
    "arc_easy": _Published(
        Source("arc_easy", "allenai/ai2_arc", "question", ("ARC-Easy",), validation="validation"),
        "Multiple-choice questions of elementary science.",
        _science,
    ),
    "arc_challenge": _Published(
        Source("arc_challenge", "allenai/ai2_arc", "question", ("ARC-Challenge",), validation="validation"),
        "Hard multiple-choice questions of school science.",
        _science,
    ),
    "boolq": _Published(
        # The official test answers are not published; validation is what everybody reports.
        Source("boolq", "google/boolq", "question", test="validation"),
        "Yes-or-no questions about a passage of text.",
        _yes_or_no,
        lettered=False,
    ),
    "hellaswag": _Published(
        # The official test answers are not published; validation is what everybody reports.
        Source("hellaswag", "Rowan/hellaswag", "ctx", test="validation"),
        "Choosing how a description of an everyday activity goes on.",
        _endings,
    ),
    "openbookqa": _Published(
        Source("openbookqa", "allenai/openbookqa", "question_stem", ("main",), validation="validation"),
        "Multiple-choice questions that combine a fact of elementary science with common knowledge.",
        _open_book,
    ),
    "piqa": _Published(
        Source("piqa", "baber/piqa", "goal", test="validation"),
        "Choosing the better of two ways to reach an everyday goal.",
        _two_ways,
    ),
    "winogrande": _Published(
        # The official test answers are not published; validation is what everybody reports.
        Source("winogrande", "allenai/winogrande", "sentence", ("winogrande_xl",), test="validation"),
        "Sentences with a gap, of which only common sense tells whom or what it means.",
        _gap,
    ),
}


@dataclass(frozen=True)
class MultipleChoice:
    """Questions whose answer is one of a few given choices, named by its letter or its words.

    ARC and OpenBookQA have official splits. The others' tests are the published validation splits, so their validation
    is a tenth of the train rows. If the data at hand have no test split, test is another tenth of train
    (`experts.domains.published`).
    """

    kind: ChoiceKind
    """Which data set."""
    name: str = ""
    """By default the kind."""
    description: str = ""
    """By default the data set's own."""
    path: str | None = None
    """A local file or folder with the published fields, instead of `$SELFADAPT_DATA` or the hub."""
    instruction: str | None = None
    """Follows the question after a blank line; None for the data set's own."""
    shots: int = added(0, repr=False)
    """The number of solved examples from train that precede every prompt, as turns of the chat."""

    def __post_init__(self) -> None:
        if self.kind not in DATASETS:
            raise unknown("data set", self.kind, DATASETS)
        check_whole("shots", self.shots, least=0)
        own = DATASETS[self.kind]
        asks_for = "the letter of the right choice only" if own.lettered else "yes or no only"
        object.__setattr__(self, "name", self.name or self.kind)
        object.__setattr__(self, "description", self.description or own.description)
        if self.instruction is None:
            object.__setattr__(self, "instruction", f"Answer with {asks_for}.")

    @property
    def published_as(self) -> str:
        return DATASETS[self.kind].source.hub

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` (a letter, or one of `choices`) and `choices`.

        Raises:
            UserError: as `load_published` does.
        """
        return load_published(DATASETS[self.kind].source, self.path, split, self._row, self.shots)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion names the right choice and no other."""
        return [
            choice(text_of(completion), answer, choices)
            for completion, answer, choices in zip(completions, columns["answer"], columns["choices"], strict=True)
        ]

    def _row(self, fields: Fields) -> dict[str, Any]:
        own = DATASETS[self.kind]
        question, choices, right = own.read(fields)
        if not 0 <= right < len(choices):
            raise ValueError(f"there is no choice {right} among {len(choices)}")
        answer = choices[right]
        if own.lettered and not any(len(text.strip()) == 1 and text.strip().isalpha() for text in choices):
            listed = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False)]
            question = "\n".join([question, "", *listed])
            answer = ascii_uppercase[right]
        elif own.lettered:  # the choices are themselves letters: "B" must not mean two things
            question = "\n".join([question, "", *choices])
        return {
            "prompt": [{"role": "user", "content": with_instruction(question, self.instruction or "")}],
            "answer": answer,
            "choices": choices,
        }
