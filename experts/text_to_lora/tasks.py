"""Tasks in the style of Natural Instructions: a definition, instances, and descriptions from another file.

A folder holds tasks in one of two forms:

- `tasks.jsonl` (task, split, Definition, Positive Examples, Categories) beside `train.jsonl`, `validation.jsonl` and
  `test.jsonl` (task, id, input, output), plain or `.gz`;
- upstream's: `tasks/task*.json` (Definition, Positive Examples, Categories, Instances) with the names in each split in
  `splits/default/train_tasks.txt` and `test_tasks.txt`.

In both, the official split is kept: tasks of the test list never train and choose nothing. Beside folders there are the
tasks that the library makes (`made`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experts.outside.errors import UserError, check_numbers
from experts.outside.files import data_folder, expand
from experts.outside.reading import read_json, read_objects, read_text
from experts.shipped import FOLDER

# Tasks of Natural Instructions that are never read, because they hold text of the benchmarks that judge the result.
#
# Keyed by the number in a task's name. The first group was found by comparing instances with evaluation rows: a full
# question of at least six words, or ten consecutive words of a question, an option or an ending, in lower case and
# without punctuation. The second group is what Text-to-LoRA's authors left out beyond that; the third is built on the
# same sources but remained in their training list.
EXCLUDED: dict[int, str] = {
    **dict.fromkeys([33], "Winogrande"),
    **dict.fromkeys([80, 81], "PIQA"),
    **dict.fromkeys([381, 519, 1660, 1661], "BoolQ"),
    **dict.fromkeys([454, 455, 1517, 1518], "HellaSwag"),
    **dict.fromkeys([1530, 1552, 1554, 1556], "ARC, through SciTail"),
    #
    **dict.fromkeys([34, 1391], "Winogrande"),
    **dict.fromkeys([228], "ARC"),
    **dict.fromkeys([380], "BoolQ"),
    **dict.fromkeys([1286], "OpenBookQA"),
    **dict.fromkeys([1389], "HellaSwag"),
    #
    **dict.fromkeys([453], "HellaSwag, through SWAG"),
    **dict.fromkeys([1398, 1400, 1401], "OpenBookQA"),
    **dict.fromkeys([1529], "ARC, through SciTail"),
}
"""Number → the benchmark."""


@dataclass(frozen=True)
class Instance:
    """One input, and every output that is right."""

    id: str
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task as people describe it, with instances."""

    name: str
    split: str
    definition: str
    instances: tuple[Instance, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    """(input, output) pairs of the definition; not among the instances."""
    descriptions: tuple[str, ...] = ()
    """At least one: the definition, if nobody wrote others."""
    category: str | None = None
    """The kind of task, if its file says."""


@dataclass(frozen=True)
class Tasks:
    """The tasks of a run; no task is in two of the lists."""

    train: list[Task]
    validation: list[Task]
    test: list[Task]

    def learned(self) -> list[Task]:
        """The training tasks; raises UserError if there are none, or all are held out."""
        if held_out := [] if self.train else [task for task in self.validation if task.split == "train"]:
            raise UserError(
                f"all {len(held_out)} training tasks are held out, and none is left to learn from: lower "
                "data.validation_tasks"
            )
        if not self.train:
            raise UserError("there are no training tasks")
        return self.train


@dataclass(frozen=True)
class TaskData:
    """Where the tasks of a run come from."""

    path: str | None = "natural_instructions"
    """A folder, relative to the current one or to `$SELFADAPT_DATA`, or the id of a data set on the hub; "made" and
    "reasoning_gym" are made by the library. Several are separated by commas. None: there are only descriptions, which
    are enough for reconstruction."""
    descriptions: str | None = None
    """A JSON Lines file of `task` (or `task_name`) and `descriptions`, there or among the files that come with the
    package; without it, definitions describe the tasks."""
    descriptions_per_task: int = 128
    """Only the first so many of a task's descriptions are used."""
    train_tasks: int | None = None
    """Only this many of the training tasks; None takes all."""
    validation_tasks: int = 8
    """Training tasks held out to choose the best step, if no task is marked as one that validates."""

    def __post_init__(self) -> None:
        check_numbers(self, least=[("descriptions_per_task", 1), ("train_tasks", 1), ("validation_tasks", 0)])

    def load(self) -> Tasks:
        """Reads the tasks; those that hold evaluation text of benchmarks are left out (`EXCLUDED`).

        Which training tasks validate, and which come first among those that train, depends only on their names.

        Raises:
            UserError: if something is missing or malformed, naming file and field, or there are too few tasks.
        """
        descriptions = {}
        if self.descriptions is not None:
            descriptions = read_descriptions(find_descriptions(self.descriptions))
        descriptions = {name: own[: self.descriptions_per_task] for name, own in descriptions.items()}
        if self.path is None:
            if not descriptions:
                raise UserError("there are no tasks: data.path names no folder, and data.descriptions no file")
            return Tasks([Task(name, "train", own[0], descriptions=own) for name, own in descriptions.items()], [], [])
        named = [task for name in self.path.split(",") for task in _named(name.strip())]
        if twice := [name for name, times in Counter(task.name for task in named).items() if times > 1]:
            raise UserError(f"{self.path}: two tasks are called {twice[0]!r}; leave one of them out")
        if descriptions and descriptions.keys().isdisjoint(task.name for task in named):
            raise UserError(
                f"{self.descriptions} describes none of the tasks of {self.path}: it has {next(iter(descriptions))!r} "
                f"and the like, and they are called {named[0].name!r} and the like; name another file in "
                "data.descriptions, or none"
            )
        tasks = described((task for task in named if not is_excluded(task.name)), descriptions)
        learn = sorted(
            (task for task in tasks if task.split == "train"),
            key=lambda task: hashlib.sha256(task.name.encode()).digest(),
        )
        validation = [task for task in tasks if task.split == "validation"]
        if not validation:
            validation, learn = learn[: self.validation_tasks], learn[self.validation_tasks :]
        return Tasks(learn[: self.train_tasks], validation, [task for task in tasks if task.split == "test"])


def _named(name: str) -> list[Task]:
    """The tasks of a folder or of a data set on the hub, or those that the library makes under that name."""
    from experts.text_to_lora.made import MADE

    if not name:
        raise UserError("data.path names no tasks, or there is nothing beside one of its commas")
    if name in MADE:
        return MADE[name]()
    return read_tasks(_find(name, Path.is_dir) or _from_hub(name))


def is_excluded(task: str) -> bool:
    """Whether a task, named like `task080_piqa_answer_generation`, is on the list."""
    number = re.match(r"task(\d+)_", task)
    return number is not None and int(number[1]) in EXCLUDED


def read_tasks(folder: Path) -> list[Task]:
    """All tasks in a folder that are in either split, sorted by name and described by their definitions.

    Raises:
        UserError: naming the file and the field, if one is missing or malformed.
    """
    rows = _either(folder / "tasks.jsonl")
    tasks = list(_from_rows(folder, rows)) if rows else list(_from_upstream(folder))
    if not tasks:
        raise UserError(
            f"{folder} holds no tasks: neither in tasks.jsonl nor in tasks/NAME.json, with its name in splits/default"
        )
    return sorted(tasks, key=lambda task: task.name)


def _from_rows(folder: Path, file: Path) -> Iterator[Task]:
    instances: dict[str, list[Instance]] = {}
    for split in ("train", "validation", "test"):
        rows = _either(folder / f"{split}.jsonl")
        for where, _, row in read_objects(rows) if rows else ():
            instances.setdefault(_text(row, "task", where), []).append(_instance(row, where))
    for where, _, row in read_objects(file):
        name, split = _text(row, "task", where), _text(row, "split", where)
        if split not in ("train", "validation", "test"):
            raise UserError(f"{where}: split must be train, validation or test, not {split!r}")
        yield _task(name, split, row, instances.get(name, []), where)


def _from_upstream(folder: Path) -> Iterator[Task]:
    for split in ("train", "test"):
        names = folder / "splits" / "default" / f"{split}_tasks.txt"
        for name in read_text(names).split() if names.is_file() else ():
            file = folder / "tasks" / f"{name}.json"
            if not file.is_file():
                continue  # a folder may hold only a part of the collection
            row = read_json(file)
            if not isinstance(row, dict) or not isinstance(row.get("Instances"), list):
                raise UserError(f"{file}: the field 'Instances' is missing, or not a list")
            where = [f"{file}: instance {number}" for number in range(len(row["Instances"]))]
            yield _task(name, split, row, list(map(_instance, row["Instances"], where)), str(file))


def _task(name: str, split: str, row: dict[str, Any], instances: list[Instance], where: str) -> Task:
    if name in ("", ".", "..") or re.search(r"[/\0]", name) or len(name.encode()) > 200:
        raise UserError(f"{where}: a task cannot be called {name!r:.60}: its adapter's folder has its name")
    definition = row.get("Definition")
    if isinstance(definition, list):
        definition = "\n".join(map(str, definition))
    if not isinstance(definition, str) or not definition.strip():
        raise UserError(f"{where}: the field 'Definition' is missing, or empty")
    if not instances:
        raise UserError(f"{where}: {name} has no instances")
    examples = row.get("Positive Examples") or []
    if not isinstance(examples, list):
        raise UserError(f"{where}: the field 'Positive Examples' is not a list")
    pairs = tuple((_text(example, "input", where), _text(example, "output", where)) for example in examples)
    categories = row.get("Categories")
    category = str(categories[0]) if isinstance(categories, list) and categories else None
    return Task(name, split, definition.strip(), tuple(instances), pairs, (definition.strip(),), category)


def _instance(row: Any, where: str) -> Instance:
    outputs = row.get("output") if isinstance(row, dict) else None
    outputs = [outputs] if isinstance(outputs, str) else outputs
    text = _text(row, "input", where)
    if not isinstance(outputs, list) or not outputs or not all(isinstance(output, str) for output in outputs):
        raise UserError(f"{where}: the field 'output' is missing, or not a list of strings")
    return Instance(str(row.get("id", where)), text, tuple(outputs))


def _text(row: Any, name: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        raise UserError(f"{where}: the field {name!r} is missing, or not a string")
    return row[name]


def find_descriptions(name: str) -> Path:
    """A file of descriptions here, under `$SELFADAPT_DATA`, or among the files that come with the package.

    Raises:
        UserError: if there is none.
    """
    file = _find(name, Path.is_file) or _shipped(name)
    if file is None:
        raise UserError(f"there is no file of descriptions {name!r} here or in SELFADAPT_DATA")
    return file


def read_descriptions(file: Path) -> dict[str, tuple[str, ...]]:
    """Task → its descriptions. A `task_name` like `Lots-of-LoRAs/task067_…` wins over `task`.

    Raises:
        UserError: if there is no line, or naming the line and the field, if one is missing or malformed.
    """
    descriptions: dict[str, tuple[str, ...]] = {}
    for where, _, row in read_objects(file):
        name = _text(row, "task_name" if row.get("task_name") else "task", where).rpartition("/")[2]
        texts = row.get("descriptions")
        sentences = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
        if not texts or not sentences:
            raise UserError(f"{where}: the field 'descriptions' is missing, or not a list of sentences")
        if name in descriptions:
            raise UserError(f"{where}: {name!r} has a line already: a task has one line with all its descriptions")
        descriptions[name] = tuple(texts)
    if not descriptions:
        raise UserError(f"{file} describes nothing: it has no lines")
    return descriptions


def described(tasks: Iterable[Task], descriptions: dict[str, tuple[str, ...]]) -> list[Task]:
    """The tasks with the descriptions written for them; those without any keep their definition."""
    return [replace(task, descriptions=descriptions.get(task.name, task.descriptions)) for task in tasks]


def _either(file: Path) -> Path | None:
    """The file, or the same with `.gz`; None if there is neither."""
    return next((path for path in (file, file.with_name(file.name + ".gz")) if path.is_file()), None)


def _find(path: str, kind: Any) -> Path | None:
    places = [expand(path)]
    if (data := data_folder()) and not places[0].is_absolute():
        places.append(data / path)
    return next((place for place in places if kind(place)), None)


def _shipped(path: str) -> Path | None:
    """A file of the package, such as `smollm2-135m/t2l/descriptions.jsonl` or `benchmarks.jsonl`."""
    file = FOLDER / path
    return file if file.is_file() else None


def _from_hub(name: str) -> Path:
    """A snapshot of a data set on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise UserError(f"there is no folder of tasks {name!r} here or in SELFADAPT_DATA")
    try:
        wanted = ["*.json", "*.jsonl", "*.jsonl.gz", "splits/*"]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted, etag_timeout=10))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no folder {name!r} here, and no data set of that name can be loaded from the hub"
        ) from error
