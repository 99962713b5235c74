"""Fields that recipes have not always had. Results are found by a hash of a recipe, which must not change."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any


def added(default: Any = MISSING, *, default_factory: Any = MISSING, repr: bool = True) -> Any:
    """A dataclass field that is left out of documents and `told` texts if it has its default."""
    return field(default=default, default_factory=default_factory, repr=repr, metadata={"added": True})


def said(made: Any) -> list[Field[Any]]:
    """The fields of a dataclass, except those that were `added` and have their default."""
    return [own for own in fields(made) if not (own.metadata.get("added") and getattr(made, own.name) == _default(own))]


def told(made: Any) -> str:
    """A dataclass's usual repr, of only the fields that `said` gives."""
    return f"{type(made).__qualname__}({', '.join(f'{own.name}={getattr(made, own.name)!r}' for own in said(made))})"


def as_document(made: Any) -> Any:
    """`dataclasses.asdict`, of only the fields that `said` gives."""
    if is_dataclass(made) and not isinstance(made, type):
        return {own.name: as_document(getattr(made, own.name)) for own in said(made)}
    if isinstance(made, dict):
        return {key: as_document(value) for key, value in made.items()}
    return [as_document(value) for value in made] if isinstance(made, list | tuple) else made


def _default(own: Field[Any]) -> Any:
    return own.default if own.default_factory is MISSING else own.default_factory()
