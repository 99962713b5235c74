"""Who is to answer a request, by its `model` or its `mixture`; every server takes the same names.

`auto` is what the dispatcher chooses, `mix:sums=0.7,groups=0.3` a mixture, an expert's name that expert. `"mixture":
{"sums": 0.7}` may stand in the body instead, for clients that cannot choose the model's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from experts.engine.lora_cache import PREFIX, mixture_name, read_mixture_name
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.naming import AUTO
from experts.outside.errors import UserError, short, unknown


class UnknownModel(UserError):
    """A model's name that stands for nothing here."""


def is_ours(model: str, library: ExpertLibrary) -> bool:
    """Whether a model's name is meant to be a mixture's or an expert's."""
    return model.startswith(PREFIX) or model in library.names


def is_asked(request: Mapping[str, Any], library: ExpertLibrary) -> bool:
    """Whether a request is ours to read: for a mixture, or under a name that only we know."""
    model = request.get("model")
    named = isinstance(model, str) and (model in (AUTO, "base") or is_ours(model, library))
    return named or request.get("mixture") is not None


def asked_mixture(request: Mapping[str, Any], library: ExpertLibrary, base: Collection[str]) -> Mixture | None:
    """The mixture that a request names; None where the dispatcher is to choose it.

    Args:
        base: what the base is called here.

    Raises:
        UserError: if the mixture is not one, or stands beside a model other than the base.
        UnknownModel: if the model's name stands for nothing here.
    """
    model = request.get("model")
    if request.get("mixture") is not None:
        if model is not None and model not in base:
            raise UserError(f"the request names the model {short(model)} and a mixture; name the base, or no model")
        return _of_body(request["mixture"], library)
    if model is None or model in base:
        return Mixture.of({})
    if model == AUTO:
        return None
    if not isinstance(model, str) or not is_ours(model, library):
        raise UnknownModel(str(unknown("model", str(model), [AUTO, *base, *library.names])))
    return read_mixture_name(model, library)


def _of_body(mixture: Any, library: ExpertLibrary) -> Mixture:
    if not isinstance(mixture, Mapping):
        raise UserError(f'mixture must be an object of weights such as {{"sums": 0.7}}, not {short(mixture)}')
    for name in mixture:
        library.path(name)
    return Mixture.of(mixture)


def answered_by(mixture: Mixture, base: str) -> str:
    """The name that a response gives of who answered: the mixture's, or the base's."""
    return mixture_name(mixture) or base
