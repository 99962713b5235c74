"""The experts that come with the package, as data: one library per base, in a folder named after the base."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from experts.library import ExpertLibrary
from experts.outside.base_names import BUILT_IN, ORIGINAL

FOLDER = Path(__file__).parent


def shipped_library(base_name: str) -> Path | None:
    """The folder of the experts that come with the package for a base of this name, or None."""
    name = BUILT_IN if base_name == ORIGINAL else base_name
    folders = [path.parent for path in sorted(FOLDER.glob("*/library.json"))]
    return next((folder for folder in folders if name in (folder.name, ExpertLibrary.open(folder).base)), None)


def shipped_for(shapes: PreTrainedModel) -> list[ExpertLibrary]:
    """The libraries that come with the package and could be a base's, because its shapes fit their experts."""
    libraries = [ExpertLibrary.open(path.parent) for path in sorted(FOLDER.glob("*/library.json"))]
    return [library for library in libraries if library.fits(shapes)]
