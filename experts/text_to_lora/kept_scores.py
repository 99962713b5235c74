"""The scores of a comparison in a file, added as they come: one that was stopped goes on where it was.

Every line has the scores of one method on one task, or benchmark, and the settings that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from experts.outside.errors import UserError
from experts.outside.files import atomic_file, check_writable
from experts.outside.reading import read_objects

Scores = TypeVar("Scores")


@dataclass(frozen=True)
class Line:
    """The scores of a method on all of a task."""

    method: str
    task: str
    settings: Mapping[str, Any]
    """Everything that they depend on: a line of another comparison is not taken for one of this."""
    scores: Any


class KeptScores(Generic[Scores]):
    """The scores of a comparison so far, (method, task) → scores; any number of processes may add.

    Raises:
        UserError: if there is no file to resume, or it is there and not to be resumed, is damaged, has scores of this
            comparison with other settings, or cannot be written.
    """

    def __init__(
        self,
        kind: type[Scores],
        settings: Mapping[tuple[str, str], Mapping[str, Any]],
        path: Path | None = None,
        *,
        resume: bool = False,
    ) -> None:
        """
        Args:
            kind: the type of the scores on one task, for pydantic.
            settings: (method, task) → everything that the scores depend on; scores of others stay in the file unread.
            path: the file; without one they are kept for as long as the program runs.
        """
        self.kind, self.settings, self.path = TypeAdapter(kind), settings, path
        self.scores: dict[tuple[str, str], Scores] = {}
        check_resumable(path, resume)
        if path is None:
            return
        if path.exists() and not resume:
            raise UserError(f"{path} exists already; resume it, or choose another file")
        check_writable(path.parent)
        for line, scores in self._read(path):
            if (key := (line.method, line.task)) in settings:
                self._refuse_other(line, settings[key])
                self.scores[key] = scores

    def add(self, method: str, task: str, scores: Scores) -> None:
        """Adds the scores of a method on one task; to the file all or none, whoever else is writing."""
        self.scores[method, task] = scores
        if self.path is None:
            return
        with FileLock(self.path.with_name(f".{self.path.name}.lock")), atomic_file(self.path) as temporary:
            before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            if before and not before.endswith("\n"):  # as an editor may leave it
                before += "\n"
            as_json = self.kind.dump_python(scores, mode="json")
            line = json.dumps(asdict(Line(method, task, self.settings[method, task], as_json)))
            temporary.write_text(f"{before}{line}\n", encoding="utf-8")

    def _refuse_other(self, line: Line, own: Mapping[str, Any]) -> None:
        if different := [name for name in {**own, **line.settings} if own.get(name) != line.settings.get(name)]:
            raise UserError(
                f"{self.path} has scores of {line.method!r} with other settings than these ({', '.join(different)}); "
                "choose another file, or remove those lines"
            )

    def _read(self, path: Path) -> Iterator[tuple[Line, Scores]]:
        for where, _, entry in read_objects(path) if path.exists() else ():
            try:
                line = TypeAdapter(Line).validate_python(entry)
                scores = self.kind.validate_python(line.scores)
            except ValidationError as error:
                raise UserError(
                    f"{where} is not a line of scores: remove it, and what it stood for is done again"
                ) from error
            yield line, scores


def check_resumable(path: Path | None, resume: bool) -> None:
    """Raises UserError if scores are to be resumed that no file keeps."""
    if resume and path is None:
        raise UserError("there is nothing to resume without the file that has the scores: give it as --output")


def short_hash(content: bytes) -> str:
    """Twelve digits that stand for the content."""
    return hashlib.sha256(content).hexdigest()[:12]


def folder_hash(folder: Path) -> str:
    """The same for the networks or adapters in a folder: their configurations and weights, wherever the folder is."""
    files = sorted(path for pattern in ("*.json", "*.safetensors") for path in folder.rglob(pattern))
    parts = []
    for path in files:
        with path.open("rb") as file:
            parts.append((path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()))
    return short_hash(repr(parts).encode())
