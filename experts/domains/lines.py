"""Reading JSON Lines, plain or gzipped, with errors that name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experts.errors import UserError
from experts.files import data_folder, expand


def find_path(path: str) -> Path:
    """A file or folder relative to the current folder, or else to `$SELFADAPT_DATA`.

    Raises:
        UserError: naming the places that were tried.
    """
    places = [expand(path)]
    folder = data_folder()
    if folder and not places[0].is_absolute():
        places.append(folder / path)
    for place in places:
        if place.exists():
            return place
    hint = "" if folder else "; SELFADAPT_DATA can name a folder of data sets"
    raise UserError(f"no file {' or '.join(str(place.absolute()) for place in places)}{hint}")


def read_objects(file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Each object with its place (`file:line`) and its line number, counted from 1; empty lines are skipped.

    Raises:
        UserError: if the file cannot be read, or a line is not a JSON object.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", number, _object(line, f"{file}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file}: {error}") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}: not a JSON object")
    return fields
