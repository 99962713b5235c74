"""Any data set on the hub, or a local file or folder, as a domain whose columns the recipe names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from experts.domains.base import Split, with_instruction, with_system
from experts.domains.jsonl import ROLES
from experts.domains.judges.judged import Judged
from experts.domains.published import Row, rows_of_split, too_few
from experts.outside.chats import as_chat, read_prompt, words
from experts.outside.errors import UserError, unknown
from experts.outside.fields import added, told
from experts.outside.reading import find_path

if TYPE_CHECKING:
    from datasets import Dataset

DATASET_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# What datasets and pandas say about a file that is empty or has only a header.
NO_ROWS = ("corresponds to no data", "No columns to parse")
BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
ZIPPED = (".gz", ".bz2", ".xz", ".zst")
# Columns that mean something here or to TRL: they hold what the recipe says, or are left out.
TAKEN = {
    *("id", "prompt", "answer", "choices", "solution", "completion", "image", "images"),
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"),
}


@dataclass(frozen=True)
class Hub(Judged):
    """Rows of any data set that `datasets.load_dataset` reads: from the hub, or CSV, Parquet, JSON and JSON Lines.

    A split is the data set's own if it has one. If not, validation and test are each a tenth of its train rows, chosen
    by a hash of the prompt (`experts.domains.published`). A prompt that occurs in several splits stays in the first of
    test, validation, train.
    """

    name: str
    description: str
    path: str
    """A file or folder, relative to the current folder or else to `$SELFADAPT_DATA`; if there is none, the hub's id."""
    judged_by: str | None = None
    """As in `experts.domains.jsonl.Jsonl`."""
    config: str | None = None
    """The hub's configuration of the data set, which `load_dataset` calls its name."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    prompt_column: str = "prompt"
    """Texts, or lists of messages."""
    answer_column: str | None = "answer"
    """Texts or numbers. None if a reward function or model needs no answers, or if prompts are chats that end with the
    answer."""
    solution_column: str | None = None
    """Texts that next-token prediction learns instead of the answers."""
    choices_column: str | None = None
    """Lists of texts, for the reward `choice`."""
    train_split: str | None = None
    """The data set's name for this split, like the other two; by default train, validation and test if they exist."""
    validation_split: str | None = None
    test_split: str | None = None
    system_prompt: str = ""
    """Goes before the prompt's messages as the system's."""
    instruction: str = ""
    """Follows the prompt's last message after a blank line."""

    image_column: str | None = added(None)
    """Pictures that the prompts are about, for a vision-language base; in a file, paths relative to the file's folder.
    Rows are then dealt out by their numbers."""
    rewards: list[str] = added(default_factory=list)
    """As in `experts.domains.jsonl.Jsonl`, and the next one too."""
    reward_weights: list[float] | None = added(None)

    __repr__ = told

    def __post_init__(self) -> None:
        self._check_judges()
        for name in ("prompt_column", "answer_column"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; name a column, or leave {name} out")

    @property
    def published_as(self) -> str | None:
        return self.path if self._place() is None else None

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer`, `choices` and perhaps `solution`, and the data set's other columns.

        Raises:
            UserError: if the data set cannot be read, a column or a split is missing, a cell is empty or of the wrong
                kind, or there are too few rows for the split.
        """
        data = self._read()
        official = self._official(list(data))
        rows = {own: list(self._rows(data[name], name)) for own, name in official.items()}
        dealt = rows_of_split(rows, split, other_copies=False)
        if not dealt:
            raise too_few(self.path, rows, split)
        own = data[official.get(split, official["train"])]
        kept = own.select([row.fields["index"] for row in dealt])
        pictures = self._pictures(kept) if self.image_column else None
        kept = kept.remove_columns([name for name in kept.column_names if name in TAKEN or name == self.image_column])
        return _with_columns(kept, [{"id": row.id, **self._row(row)} for row in dealt], pictures)

    def _read(self) -> dict[str, Any]:
        """The data set's splits, by its own names."""
        from datasets import Dataset, load_dataset

        place = self._place()
        try:
            if place is None:
                data = load_dataset(self.path, self.config, revision=self.revision)
            elif place.is_dir():
                data = load_dataset(str(place), self.config, **self._csv_options(place.rglob("*")))
            else:
                stem = place.name.lower().partition(".")[0]
                split = stem if stem in get_args(Split) else "train"
                options = self._csv_options([place])
                data = load_dataset(BUILDERS[_suffix(place)], data_files={split: str(place)}, **options)
        # datasets and the hub's clients raise what their libraries do: OSError, httpx.HTTPError, ValueError, …
        except Exception as error:
            what = f"the hub's data set {self.path}" if place is None else str(place)
            local = "there is no such file or folder, and " if place is None else ""
            cause = error.__cause__ or error
            empty = place is not None and place.is_file() and not place.stat().st_size
            if empty or any(said in str(cause) for said in NO_ROWS):
                raise UserError(f"{what} has no rows") from error
            raise UserError(f"{local}{what} cannot be read ({' '.join(str(cause).split())})") from error
        if not isinstance(data, dict) or not all(isinstance(own, Dataset) for own in data.values()):
            raise UserError(f"{self.path} has no splits of rows")
        return data

    def _place(self) -> Path | None:
        """The file or folder that `path` names; None if it is an id on the hub."""
        try:
            place = find_path(self.path)
        except UserError:
            if DATASET_ID.fullmatch(self.path) and _suffix(Path(self.path)) not in BUILDERS:
                return None
            raise
        if place.is_file() and _suffix(place) not in BUILDERS:
            raise UserError(f"{place} is of an unknown kind; the kinds are {', '.join(BUILDERS)}")
        return place

    def _csv_options(self, files: Any) -> dict[str, Any]:
        """Options that keep texts as they are written: 007 is not 7, and NA is not an empty cell."""
        kinds = {_suffix(file) for file in files}
        if not kinds & {".csv", ".tsv"}:
            return {}
        columns = (self.prompt_column, self.answer_column, self.solution_column)
        separator = {"sep": "\t"} if ".tsv" in kinds else {}
        return {"converters": dict.fromkeys(filter(None, columns), str), **separator}

    def _official(self, names: list[str]) -> dict[Split, str]:
        """Our splits → the data set's names for them."""
        asked = dict(zip(get_args(Split), (self.train_split, self.validation_split, self.test_split), strict=True))
        for name in filter(None, asked.values()):
            if name not in names:
                raise UserError(f"{self.path}: {unknown('split', name, names)}")
        free = [name for name in names if name not in asked.values()]
        official = {split: asked[split] or (split if split in free else None) for split in asked}
        if official["train"] is None:
            raise UserError(
                f"{self.path} has no split 'train', only {', '.join(names)}; name the one to train on in train_split"
            )
        return {split: name for split, name in official.items() if name}

    def _rows(self, own: Any, name: str) -> Iterator[Row]:
        wanted = (self.prompt_column, self.answer_column, self.solution_column, self.choices_column)
        for column in filter(None, (*wanted, self.image_column)):
            if column not in own.column_names:
                raise _no_column(self.path, column, own.column_names)
        try:
            columns = {column: own[column][:] for column in filter(None, wanted)}
        except UnicodeDecodeError as error:  # datasets looks at the bytes of a text only now
            raise UserError(f"{self.path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        for index in range(len(own)):
            where = f"{self.path} {name}:{index}"
            fields = {"index": index} | {column: values[index] for column, values in columns.items()}
            chat = self._chat(fields[self.prompt_column], where)
            question = " ".join(" ".join(words(message["content"]) for message in chat).casefold().split())
            if self.image_column:  # many prompts ask the same about different pictures
                question = f"{question} {name}:{index}"
            yield Row(f"{name}:{index}", where, fields | {"chat": chat}, question, question)

    def _chat(self, prompt: Any, where: str) -> list[dict[str, str]]:
        what = f"{where}: the column {self.prompt_column!r}"
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()) or prompt == []:
            raise UserError(f"{what} is empty")
        try:
            chat = [{"role": m["role"], "content": m["content"]} for m in as_chat(read_prompt(prompt, "it"))]
        except UserError as error:
            raise UserError(f"{what} must be a text or a list of messages: {error}") from error
        if not all(isinstance(message["content"], str) for message in chat):
            raise UserError(f"{what} must be text alone")
        asks = chat[:-1] if chat[-1]["role"] == "assistant" and self.answer_column is None else chat
        last = (asks or chat)[-1]["role"]
        if last not in ROLES:
            raise UserError(f"{what} has a message of the unknown role {last!r}; the roles are {', '.join(ROLES)}")
        if not asks or last != "user":
            ends = f", or with the answer if answer_column is null, not with one from the {chat[-1]['role']}"
            raise UserError(f"{what} must end with a message from the user{ends}")
        return chat

    def _row(self, row: Row) -> dict[str, Any]:
        chat = [dict(message) for message in row.fields["chat"]]
        answer = self._text(row, self.answer_column)
        if chat[-1]["role"] == "assistant":
            answer = chat.pop()["content"]
        chat[-1]["content"] = with_instruction(chat[-1]["content"], self.instruction)
        made: dict[str, Any] = {"prompt": with_system(chat, self.system_prompt, row.where), "answer": answer}
        made["choices"] = self._choices(row)
        if not answer and self.needs_answers:
            raise UserError(
                f"{row.where}: {self.needs_answers[0]} needs answers; only a reward function or a reward model can do "
                "without them"
            )
        if self.solution_column:
            made["solution"] = self._text(row, self.solution_column)
        if judge := self.finds_right(made["answer"], made["choices"]):
            raise UserError(
                f"{row.where}: {judge} does not accept this row's own answer; correct it, or choose another judge"
            )
        return made

    def _text(self, row: Row, column: str | None) -> str:
        if column is None:
            return ""
        given = row.fields[column]
        if given is None or (isinstance(given, str) and not given.strip()):
            raise UserError(f"{row.where}: the column {column!r} is empty")
        if not isinstance(given, str | int | float):
            raise UserError(f"{row.where}: the column {column!r} must be a text or a number")
        return str(given)

    def _pictures(self, rows: Any) -> Any:
        """Only the column of pictures, called `image`."""
        from datasets import Dataset, Image

        pictures = rows.select_columns([self.image_column])
        if self.image_column != "image":
            pictures = pictures.rename_column(self.image_column, "image")
        place = self._place()
        if getattr(pictures.features["image"], "dtype", "") in ("string", "large_string") and place is not None:
            folder = place if place.is_dir() else place.parent
            files = [folder / str(name) for name in pictures["image"]]
            if missing := [file for file in files if not file.is_file()]:
                raise UserError(f"{self.path}: there is no picture {missing[0]}")
            pictures = Dataset.from_dict({"image": [str(file) for file in files]})
        try:
            return pictures.cast_column("image", Image())
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(f"{self.path}: the column {self.image_column!r} holds no pictures") from error

    def _choices(self, row: Row) -> list[str]:
        given = row.fields[self.choices_column] if self.choices_column else []
        if not (isinstance(given, list) and all(isinstance(one, str) and one.strip() for one in given)):
            raise UserError(f"{row.where}: the column {self.choices_column!r} must be a list of texts")
        return given


def _no_column(path: str, column: str, known: list[str]) -> UserError:
    separator = next((one for one in ";\t|" if len(known) == 1 and one in known[0]), None)
    if separator is None:
        return UserError(f"{path}: {unknown('column', column, known)}")
    return UserError(
        f"{path}: its columns are separated by {separator!r}; save it with commas (.csv) or tabs (.tsv) between them"
    )


def _suffix(file: Path) -> str:
    """The suffix of a file's name, without that of its compression."""
    return Path(file.stem).suffix.lower() if file.suffix in ZIPPED else file.suffix.lower()


def _with_columns(kept: Dataset, rows: list[dict[str, Any]], pictures: Dataset | None) -> Dataset:
    """A data set of the rows' columns, then the pictures, then the columns that are kept."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    chat = List({"role": Value("string"), "content": Value("string")})
    types = {"prompt": chat, "choices": List(Value("string"))}
    features = Features({name: types.get(name, Value("string")) for name in rows[0]})
    made = Dataset.from_list(rows, features=features)
    parts = [part for part in (made, pictures, kept) if part is not None and part.column_names]
    if len(parts) == 1:
        return made
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # for work that takes no time
    try:
        return concatenate_datasets(parts, axis=1)
    finally:
        if shown:
            enable_progress_bars()
