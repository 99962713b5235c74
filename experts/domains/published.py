"""Published data sets: where their rows come from, and how splits are kept apart.

All splits of a domain come from one place, the first of these that exists: the domain's own `path`, the data set's
folder under `$SELFADAPT_DATA`, the hub. So what a split holds does not depend on whether the hub is reachable today.

If the place has an official split, it is used. If not, validation and test are each a tenth of the train rows, chosen
by a hash of the question, and train is the rest. The tenth for test is not trained on even if there is an official
test, because another copy of the data may have no other test. A question that occurs in several splits, whatever its
case, spacing and punctuation, stays in the first of test, validation, train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from experts.domains.base import Split
from experts.outside.errors import UserError, unknown
from experts.outside.files import data_folder
from experts.outside.reading import find_path, read_objects

if TYPE_CHECKING:
    from datasets import Dataset

Fields = Mapping[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz")
ENOUGH = "a hash of each question puts one in ten into validation and one in ten into test; 40 rows are usually enough"
OVERLAPS = Path("_overlaps", "train_rows_to_drop.jsonl")


@dataclass(frozen=True)
class Source:
    """Where one data set is published, and which of its splits are ours: None if it has none with answers."""

    folder: str
    """Under `$SELFADAPT_DATA`, with one `<official split>.jsonl` or `.jsonl.gz` per split."""
    hub: str
    question: str
    """The field that identifies a question."""
    configs: tuple[str | None, ...] = (None,)
    """The hub's configurations, read one after the other."""
    train: str | None = "train"
    validation: str | None = None
    test: str | None = "test"

    def official(self) -> dict[Split, str]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: name for split in get_args(Split) if (name := names[split])}


@dataclass(frozen=True)
class Row:
    """A row on its way to a split."""

    id: str
    where: str
    fields: Fields
    question: str
    """In lower case, with single spaces: rows are dealt out by it."""
    asks: str
    """The same for rows that must not be in different splits."""


def load_published(
    source: Source, path: str | None, split: Split, read: Callable[[Fields], dict[str, Any]], shots: int = 0
) -> Dataset:
    """The rows of a split, as `read` makes them from the published fields, with an `id`: official split and row number.

    Args:
        path: A folder with files named like the official splits, or one file: the split of its name if it has one, else
            rows that are dealt out to all splits.
        read: May raise KeyError for a missing field, and TypeError, ValueError … for what it cannot read.
        shots: The number of solved examples, the first rows of train, that precede every prompt as turns of the chat;
            train is the rows after them.

    Raises:
        UserError: if the data cannot be found, a row cannot be read, or there are no rows for the split or too few for
            the examples.
    """
    from datasets import Dataset

    if split not in get_args(Split):
        raise unknown("split", split, get_args(Split))
    if split != "test" and source.train is None:
        raise UserError(f"{source.folder} has no {split} split: it is only for evaluation")
    found = _find(source, path)
    rows = rows_of_split(found, split)
    if not rows:
        raise too_few(path or source.folder, found, split)
    read_rows = [{"id": row.id, **_read(read, row)} for row in rows]
    if shots:
        train = read_rows if split == "train" else [_read(read, row) for row in rows_of_split(found, "train")[:shots]]
        if len(train) < shots + (split == "train"):
            raise UserError(f"{path or source.folder}: train has {len(train)} rows, too few for {shots} shots")
        solved = as_turns(train[:shots])
        read_rows = [row | {"prompt": solved + row["prompt"]} for row in read_rows[shots if split == "train" else 0 :]]
    return Dataset.from_list(read_rows)


def as_turns(examples: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows as a chat in which every prompt is answered with its `solution`, or its `answer` if it has none."""
    return [
        turn
        for row in examples
        for turn in (*row["prompt"], {"role": "assistant", "content": row.get("solution", row["answer"])})
    ]


def _read(read: Callable[[Fields], dict[str, Any]], row: Row) -> dict[str, Any]:
    try:
        return read(row.fields)
    except KeyError as error:
        raise UserError(f"{row.where}: the field {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{row.where}: {error}") from error


def too_few(where: str, official: Mapping[Split, list[Row]], split: Split) -> UserError:
    """The error to raise if no rows are left for a split."""
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in official.items())
    if official.get("train") and (split == "train" or split not in official):
        return UserError(f"{where}: too few rows ({counts}) for a {split} split: {ENOUGH}")
    return UserError(f"{where}: too few rows ({counts}): none is left for a {split} split; add at least one")


def rows_of_split(official: Mapping[Split, list[Row]], split: Split, *, other_copies: bool = True) -> list[Row]:
    """The rows of a split, dealt from train if it does not exist, without questions that occur in an earlier split.

    Args:
        other_copies: whether there are copies of the data without a test, whose test is a tenth of train; that tenth is
            then not trained on here either.
    """
    asked: set[str] = set()
    dealt = _deal(official, other_copies)
    for part in ("test", "validation", "train"):
        rows = [row for row in dealt[part] if row.asks not in asked]
        asked.update(row.asks for row in rows)
        if part == split:
            break
    return rows


def _deal(rows: Mapping[Split, list[Row]], other_copies: bool) -> dict[Split, list[Row]]:
    """The rows of the three splits; train gives a tenth to each of the others that does not exist."""
    shares: list[Split] = ["train"] * 8
    shares.append("train" if "validation" in rows else "validation")
    shares.append("train" if "test" in rows and not other_copies else "test")
    dealt: dict[Split, list[Row]] = {split: [] for split in get_args(Split)}
    dealt |= {split: given for split, given in rows.items() if split != "train"}
    share_of: dict[str, Split] = {}
    for row in rows.get("train", []):
        digest = hashlib.sha256(row.question.encode()).digest()
        share = share_of.setdefault(row.asks, shares[int.from_bytes(digest) % len(shares)])
        if share == "train" or share not in rows:
            dealt[share].append(row)
    return dealt


def _find(source: Source, path: str | None) -> dict[Split, list[Row]]:
    official = source.official()
    folder = data_folder()
    if path is not None:
        place = find_path(path)
        if place.is_file():
            # A file named like an official split is that split.
            stem = place.name.partition(".")[0]
            own: Split = next((split for split, name in official.items() if name == stem), "train")
            return {own if source.train else "test": _local(source, place, "row")}
    else:
        place = (folder or Path()) / source.folder
        if folder is None or not _file(place, next(iter(official.values()))):
            return {split: _from_hub(source, name, place if folder else None) for split, name in official.items()}
    files = {split: file for split, name in official.items() if (file := _file(place, name))}
    if not files:
        raise UserError(f"{place}: none of {', '.join(f'{name}.jsonl[.gz]' for name in official.values())} is there")
    drop = _rows_to_drop(source, place)
    return {
        split: [
            row
            for index, row in enumerate(_local(source, file, official[split]))
            if split == "test" or (official[split], index) not in drop
        ]
        for split, file in files.items()
    }


def _file(folder: Path, split: str) -> Path | None:
    """The file of a split, which may also be named for its size, as WinoGrande's are: `train_xl`."""
    names = [f"{split}{suffix}" for suffix in SUFFIXES] + [f"{split}_*{suffix}" for suffix in SUFFIXES]
    return next((file for name in names for file in sorted(folder.glob(name)) if file.is_file()), None)


def _rows_to_drop(source: Source, place: Path) -> set[tuple[str, int]]:
    """The rows whose question is also in a test, by official split and number, as the data folder lists them."""
    folder = data_folder()
    if folder is None or place != folder / source.folder or not (folder / OVERLAPS).is_file():
        return set()
    return {
        (fields["split"], fields["row"])
        for _, _, fields in read_objects(folder / OVERLAPS)
        if fields["dataset"] == source.folder
    }


def _local(source: Source, file: Path, split: str) -> list[Row]:
    objects = ((where, fields) for where, _, fields in read_objects(file))
    return list(_rows(source, split, objects))


def _from_hub(source: Source, split: str, folder: Path | None) -> list[Row]:
    from datasets import load_dataset

    try:
        parts = [load_dataset(source.hub, config, split=split) for config in source.configs]
    # The hub's clients raise what their libraries do: OSError, httpx.HTTPError, ValueError, …
    except Exception as error:
        place = f"{folder or '$SELFADAPT_DATA/' + source.folder}/{next(iter(source.official().values()))}.jsonl[.gz]"
        raise UserError(
            f"there is no file {place}, and the hub's {source.hub} ({split}) cannot be read "
            f"({' '.join(str(error).split())}); put a file with the hub's fields there, or name one as the path"
        ) from error
    objects = ((f"{source.hub} {split}:{index}", fields) for part in parts for index, fields in enumerate(part))
    return list(_rows(source, split, objects))


def _rows(source: Source, split: str, objects: Iterator[tuple[str, Fields]]) -> Iterator[Row]:
    for index, (where, fields) in enumerate(objects):
        question = fields.get(source.question)
        if not isinstance(question, str) or not question.strip():
            state = "must be a text" if source.question in fields else "is missing"
            raise UserError(f"{where}: the field {source.question!r} {state}")
        question = " ".join(question.casefold().split())
        yield Row(f"{split}:{index}", where, fields, question, "".join(filter(str.isalnum, question)))
