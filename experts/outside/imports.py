"""The user's own functions and classes, by the place that a recipe names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from experts.outside.errors import UserError, unknown
from experts.outside.reading import find_path


def find_object(where: str, what: str) -> Any:
    """The object that `file.py:name` or `package.module:name` names; its file is run once.

    Args:
        where: A file is looked for from the current folder, or else in `$SELFADAPT_DATA`; a module also from the
            current folder.
        what: what the object is, for errors.

    Raises:
        UserError: for a place of another form, a file or module that is missing or fails, or a name that it lacks.
    """
    home, _, name = where.rpartition(":")
    if not home or not name.isidentifier():
        raise UserError(f"the {what} {where!r} must be file.py:name or package.module:name")
    try:
        module = _from_file(_find_file(home, f"the {what} {where}")) if home.endswith(".py") else _from_package(home)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        said = " ".join(str(error).split())
        raise UserError(f"the {what} {where} cannot be imported: {type(error).__name__}: {said}") from error
    if not hasattr(module, name):
        raise unknown(f"{what} in {home}", name, [known for known in vars(module) if not known.startswith("_")])
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"the {what} {where} cannot be called: it is of the type {type(found).__name__}")
    return found


def _find_file(path: str, what: str) -> Path:
    try:
        return find_path(path, data=False)
    except UserError as error:
        raise UserError(f"{what} was not found: {error}") from error


def _from_package(name: str) -> ModuleType:
    _look_in(Path.cwd())
    return importlib.import_module(name)


def _from_file(file: Path) -> ModuleType:
    file = file.resolve()
    # Different from any other module's name, and different for a different text.
    digest = hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]
    name = f"{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    _look_in(file.parent)  # for imports of files beside it
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
