"""Questions about pictures, with the answers that several people gave: TextVQA, OK-VQA, or your own folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.writing import answered, in_plain_characters, without_tags
from experts.outside.errors import UserError
from experts.outside.files import data_folder
from experts.outside.reading import read_objects

if TYPE_CHECKING:
    from datasets import Dataset

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# The punctuation of 3.5, 3:30, 1/2 and -5, which would be other numbers without it.
OF_A_NUMBER = r"(?<=\d)[.,:/-](?=\d)|(?<![\w.-])-(?=\d)"
AGREEMENT = 3
"""An answer earns 1 if this many people gave it, or all of them if there are fewer."""


@dataclass(frozen=True)
class Vqa:
    """A picture and a question; an answer earns the share of three people that gave it (VQA accuracy).

    A folder holds `train.jsonl`, `validation.jsonl` and `test.jsonl` with lines such as
    `{"image": "1.png", "question": "What colour is it?", "answers": ["red", "red", "dark red"]}`; a picture's path is
    relative to the folder. For a data set on the hub, train and validation are 95 % and 5 % of `train_split`, and test
    is `test_split`.
    """

    name: str
    description: str
    source: str
    """A folder (relative to the current one or else to `$SELFADAPT_DATA`), or a hub id such as lmms-lab/textvqa."""
    instruction: str = "Answer the question using a single word or phrase."
    """Follows the question after a blank line."""
    train_split: str = "train"
    test_split: str = "validation"

    @property
    def published_as(self) -> str | None:
        return self.source if self._folder() is None else None

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `image`, `answers` and `answer`, the most common one.

        Raises:
            UserError: for a missing source, a malformed line, a picture that does not load, or no rows.
        """
        folder = self._folder()
        rows = self._from_hub(split) if folder is None else self._from_folder(folder, split)

        def shape(question: str, answers: list[str]) -> dict[str, Any]:
            prompt = [{"role": "user", "content": with_instruction(question, self.instruction)}]
            return {"prompt": prompt, "answer": Counter(answers).most_common(1)[0][0]}

        # Only these columns: reading the pictures here would take as long as training on them.
        return rows.map(shape, input_columns=["question", "answers"], remove_columns=["question"])

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """VQA accuracy; needs the column `answers`."""
        return [
            accuracy(without_tags(answered(text_of(completion))), answers)
            for completion, answers in zip(completions, columns["answers"], strict=True)
        ]

    def _folder(self) -> Path | None:
        for parent in (Path(), data_folder()):
            if parent is not None and (parent / self.source).is_dir():
                return parent / self.source
        return None

    def _from_folder(self, folder: Path, split: Split) -> Dataset:
        from datasets import Dataset, Features, List, Value
        from datasets import Image as Picture

        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name}")
        rows = [_row(path, number, fields) for _, number, fields in read_objects(path)]
        if not rows:
            raise UserError(f"{path} has no rows")
        strings = {name: Value("string") for name in ("id", "question")}
        features = Features(**strings, image=Picture(), answers=List(Value("string")))
        return Dataset.from_list(rows, features=features)

    def _from_hub(self, split: Split) -> Dataset:
        from datasets import load_dataset

        try:
            rows = load_dataset(self.source, split=self.test_split if split == "test" else self.train_split)
        except (OSError, ValueError) as error:
            raise UserError(
                f"there is no folder {self.source} here, and it cannot be loaded from the hub: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if split != "test":
            rows = rows.train_test_split(test_size=0.05, seed=0)["train" if split == "train" else "test"]
        ids = [str(name) for name in rows["question_id"]]
        return rows.select_columns(["image", "question", "answers"]).add_column("id", ids)


def accuracy(text: str, answers: Sequence[str]) -> float:
    """The number of people who gave this answer as a share of three, at most 1; of all people if there are fewer.

    >>> accuracy("The red.", ["red", "red", "Red", "crimson"]), accuracy("crimson", ["red", "red", "Red", "crimson"])
    (1.0, 0.3333333333333333)
    """
    said = plain(text)
    agreeing = sum(plain(answer) == said for answer in answers)
    return min(1.0, agreeing / min(AGREEMENT, len(answers))) if said and answers else 0.0


def plain(text: str) -> str:
    """The text in lower case, without punctuation and articles, with numbers as digits.

    >>> plain("A Stop-Sign, with two birds!"), plain("$1,000.50")
    ('stop sign with 2 birds', '1000.50')
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"['’]", "", in_plain_characters(text).lower()))
    words = re.sub(rf"(?!{OF_A_NUMBER})[^\w\s]", " ", text).split()
    words = [word for word in words if word not in ("a", "an", "the")] or words  # the letter A is an answer
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def _row(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    try:
        picture, question, answers = path.parent / row["image"], str(row["question"]), [str(a) for a in row["answers"]]
        if not answers or isinstance(row["answers"], str):
            raise ValueError("answers is not a list of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}:{number}: a line must hold image, question and a list of answers ({error})") from error
    try:
        Image.open(picture).close()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}:{number}: the picture {picture} cannot be loaded: {error}") from error
    return {"id": f"{path.stem}-{number}", "question": question, "image": str(picture), "answers": answers}
