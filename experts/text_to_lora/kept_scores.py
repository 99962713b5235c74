"""The scores of a comparison in a file, added as they come: one that was stopped goes on where it was.

Every line has the scores of one method on one task, and the settings that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from experts.outside.errors import UserError
from experts.outside.files import atomic_file, check_writable
from experts.outside.reading import read_objects
from experts.text_to_lora.evaluation import Score


@dataclass(frozen=True)
class Line:
    """The scores of a method on all instances of a task."""

    method: str
    settings: Mapping[str, Any]
    """Everything that they depend on: a line of another comparison is not taken for one of this."""
    scores: Sequence[Score]


class KeptScores:
    """The scores of a comparison so far, (method, task) → those of its instances; any number of processes may add.

    Raises:
        UserError: if the file is there and not to be resumed, is damaged, has scores of one of the methods with other
            settings, or cannot be written.
    """

    def __init__(
        self, settings: Mapping[str, Mapping[str, Any]], path: Path | None = None, *, resume: bool = False
    ) -> None:
        """
        Args:
            settings: method → everything that its scores depend on.
            path: the file; without one they are kept for as long as the program runs.
        """
        self.settings, self.path = settings, path
        self.scores: dict[tuple[str, str], Sequence[Score]] = {}
        if path is None:
            return
        if path.exists() and not resume:
            raise UserError(f"{path} exists already; resume it, or choose another file")
        check_writable(path.parent)
        for line in _read(path):
            if line.method in settings:
                self._refuse_other(line)
                self.scores[line.method, line.scores[0].task] = line.scores

    def add(self, method: str, scores: Sequence[Score]) -> None:
        """Adds the scores of a method on one task; to the file all or none, whoever else is writing."""
        self.scores[method, scores[0].task] = scores
        if self.path is None:
            return
        with FileLock(self.path.with_name(f".{self.path.name}.lock")), atomic_file(self.path) as temporary:
            before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            if before and not before.endswith("\n"):  # as an editor may leave it
                before += "\n"
            line = json.dumps(asdict(Line(method, self.settings[method], scores)))
            temporary.write_text(f"{before}{line}\n", encoding="utf-8")

    def _refuse_other(self, line: Line) -> None:
        own = self.settings[line.method]
        if different := [name for name in {**own, **line.settings} if own.get(name) != line.settings.get(name)]:
            raise UserError(
                f"{self.path} has scores of {line.method!r} with other settings than these ({', '.join(different)}); "
                "choose another file, or remove those lines"
            )


def _read(path: Path) -> list[Line]:
    lines = []
    for where, _, entry in read_objects(path) if path.exists() else ():
        try:
            line = TypeAdapter(Line).validate_python(entry)
        except ValidationError:
            line = None
        if line is None or not line.scores:
            raise UserError(f"{where} is not a line of scores: remove it, and what it stood for is done again")
        lines.append(line)
    return lines


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
