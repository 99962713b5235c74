"""Where things are kept, and how they are written: all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experts.outside.errors import UserError


def cache_folder() -> Path:
    """`$SELFADAPT_CACHE`, else `selfadapt` in the user's cache folder.

    Raises:
        UserError: if neither is known because there is no home folder.
    """
    if folder := os.environ.get("SELFADAPT_CACHE"):
        return expand(folder)
    try:
        return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "selfadapt"
    except UserError as error:
        raise UserError(f"there is no folder to keep files in: {error}; or name one in SELFADAPT_CACHE") from error


def data_folder() -> Path | None:
    """`$SELFADAPT_DATA`, a folder of local data sets, or None if it is not set."""
    folder = os.environ.get("SELFADAPT_DATA")
    return expand(folder) if folder else None


def expand(path: str | Path) -> Path:
    """The path, with the home folder in place of `~` or `~user` at its beginning.

    Raises:
        UserError: if there is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no HOME and no such user
        raise UserError(
            f"{path} cannot be found, as the home folder is not known; give the full path, or set HOME"
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves it to `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _let_others_read(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: the old one, if any, is replaced only by a complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for each in (temporary, *temporary.rglob("*")):
            _let_others_read(each)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that must not exist; raises UserError if it does."""
    if path.exists():
        raise UserError(f"{path} exists already; choose another folder, or remove it first")
    with atomic_folder(path) as temporary:
        yield temporary


def _let_others_read(path: Path) -> None:
    """Sets the user's usual permissions: temporary and safetensors files are made readable for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_json(path: Path, document: Any) -> None:
    """Writes one JSON document, atomically, with a final newline."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Makes `folder` and checks, before any work is done, that a file can be written into it.

    Raises:
        UserError: if it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


def check_new_folder(folder: Path) -> None:
    """Checks that `folder` can be made, or written into if it exists, and leaves nothing behind.

    Raises:
        UserError: if it cannot.
    """
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
