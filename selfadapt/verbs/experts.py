"""`selfadapt experts list|show|add|remove`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from selfadapt.verbs import show


def experts_list(library: Path | None = None, model: str | None = None, json: bool = False) -> None:
    """List a library's experts and what each is for.

    Args:
        library: a folder of experts; by default those that come with the base.
        model: the base whose shipped experts are meant.
        json: print them as JSON.
    """
    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    descriptions = {name: experts.config(name).description for name in experts.names}
    document = {
        "library": str(experts.folder),
        "base": experts.base,
        "fingerprint": experts.fingerprint,
        "experts": descriptions,
    }
    lines = [f"{name}: {description}" for name, description in descriptions.items()]
    show(document, json, "\n".join(lines) or f"{experts.folder} is empty: the base")


def experts_show(
    name: Positional[str], library: Path | None = None, model: str | None = None, json: bool = False
) -> None:
    """Print an expert's model card; with --json, its configuration and its z in figures.

    Args:
        name: the expert.
        library: a folder of experts; by default those that come with the base.
        model: the base whose shipped experts are meant.
        json: print figures as JSON.
    """
    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    config = experts.config(name)
    z = experts.z(name)
    document = {
        "name": name,
        "domain": config.domain,
        "description": config.description,
        "rank": config.rank,
        "parameters": sum(len(vector) for vector in z.values()),
        "matrices": {
            matrix: {"r": len(vector), "min": vector.min().item(), "max": vector.max().item()}
            for matrix, vector in z.items()
        },
    }
    show(document, json, (experts.path(name) / "README.md").read_text(encoding="utf-8"))


def experts_add(expert: Positional[Path], library: Path, name: str | None = None, classifier: bool = False) -> None:
    """Copy an expert into a library, which is made if there is none.

    Args:
        expert: the folder that `selfadapt train` wrote.
        library: the library's folder.
        name: its name there; by default the folder's.
        classifier: it is the expert that names domains for `--dispatch classifier`.
    """
    from experts.errors import UserError
    from experts.expert import read_config
    from experts.library import ExpertLibrary

    if library.exists():
        experts = ExpertLibrary.open(library)
    else:
        config = read_config(expert)
        if config.base_fingerprint is None or config.base_model_name_or_path is None:
            raise UserError(f"the expert in {expert} does not say which base it belongs to")
        experts = ExpertLibrary.create(library, config.base_model_name_or_path, config.base_fingerprint)
    print(experts.add(expert, name, classifier=classifier))


def experts_remove(name: Positional[str], library: Path) -> None:
    """Delete an expert from a library.

    Args:
        name: the expert.
        library: the library's folder.
    """
    from experts.library import ExpertLibrary

    ExpertLibrary.open(library).remove(name)


def experts() -> None:
    """List, show, add and remove the experts of a library."""


EXPERTS: dict[str, Callable[..., Any]] = {
    "list": experts_list,
    "show": experts_show,
    "add": experts_add,
    "remove": experts_remove,
}
