"""The table of dispatchers, and what a dispatcher's name means.

A new one takes a file beside this one, a line in the table, and its name in `experts.naming`, so that no expert has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dispatch.base import Dispatcher, Fixed
from dispatch.embedding import EmbeddingDispatcher
from dispatch.prompt import PromptDispatcher, check_classifier
from dispatch.text_to_lora import T2LDispatcher, check_network
from experts.engine import Engine, NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError, unknown

Access = Literal["none", "any", "native"]
"""Access to an engine: none, to what every engine can do, or to what only the native one lets others look into."""
LEVELS: tuple[Access, ...] = get_args(Access)


@dataclass(frozen=True)
class Kind:
    """How a dispatcher is made for a library, and what it needs."""

    make: Callable[[ExpertLibrary, Any], Dispatcher] | None
    """Takes a library and the engine that carries its experts; None if that also needs examples of a domain."""
    needs: Access = "none"
    check: Callable[[ExpertLibrary], None] = lambda library: None
    """Raises UserError, before a model is loaded, if the library lacks what the dispatcher needs."""
    brings_experts: bool = False
    """Whether it has something to dispatch to even if the library has no experts."""


DEFAULT = "embedding"
FEW_SHOT = "few-shot"

DISPATCHERS = {
    "none": Kind(lambda library, engine: Fixed(Mixture.of({}))),
    "prompt": Kind(PromptDispatcher.from_library, "native"),
    "classifier": Kind(PromptDispatcher.of_classifier, "native", check_classifier),
    "embedding": Kind(lambda library, engine: EmbeddingDispatcher.from_library(library)),
    "t2l": Kind(T2LDispatcher.from_library, "any", check_network, brings_experts=True),
    FEW_SHOT: Kind(None, "native"),
}


def find_dispatcher(name: str, library: ExpertLibrary, engine: Engine | None = None) -> Dispatcher:
    """What `--dispatch NAME` means: a dispatcher, an expert of the library, or a `MIX.json`.

    Args:
        engine: carries the library's experts; None if there is none yet, or it is not ours.

    Raises:
        UserError: if the name means nothing, with the nearest names; or if the library or the engine lacks what it
            needs.
    """
    check_dispatcher(
        name, library, "none" if engine is None else "native" if isinstance(engine, NativeEngine) else "any"
    )
    kind = DISPATCHERS.get(name)
    if not library.names and not (kind and kind.brings_experts):
        return Fixed(Mixture.of({}))
    if kind is None:
        return Fixed(Mixture.read(Path(name)) if name.endswith(".json") else Mixture.of({name: 1.0}))
    assert kind.make is not None
    return kind.make(library, engine)


def check_dispatcher(name: str, library: ExpertLibrary, access: Access = "native") -> None:
    """Raises UserError, before a model is loaded, if `find_dispatcher` would do so for an engine with this access."""
    if not isinstance(name, str):
        raise UserError(
            f"dispatch takes a name, not a {type(name).__name__}; give a dispatcher of your own to "
            "SelfAdaptiveModel(engine, dispatcher), or set the .dispatcher of a loaded model"
        )
    named = {name: kind for name, kind in DISPATCHERS.items() if kind.make}
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise UserError(f"no such file: {name}")
        for expert in Mixture.read(Path(name)).names:
            library.path(expert)
    elif name in named:
        kind = named[name]
        kind.check(library)
        if (library.names or kind.brings_experts) and LEVELS.index(kind.needs) > LEVELS.index(access):
            raise UserError(
                f"the dispatcher {name!r} looks into the base, which only the native engine allows; "
                "choose embedding, an expert or a MIX.json"
            )
    elif name not in library.names:
        raise unknown("dispatcher or expert", name, [*named, *library.names])
