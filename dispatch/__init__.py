"""Pass one: prompts in, mixture out."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch.base import Dispatcher, Fixed
from dispatch.embedding import EmbeddingDispatcher
from dispatch.prompt import Calibration, PromptDispatcher
from dispatch.text_to_lora import T2LDispatcher
from experts.library import CLASSIFIER, ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError, unknown

__all__ = [
    "Calibration",
    "Dispatcher",
    "EmbeddingDispatcher",
    "Fixed",
    "PromptDispatcher",
    "T2LDispatcher",
    "find_dispatcher",
]

DISPATCHERS = ("none", "prompt", "classifier", "embedding", "t2l")


def find_dispatcher(
    name: str,
    library: ExpertLibrary,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Dispatcher:
    """What `--dispatch NAME` means: a dispatcher, an expert of the library, or a `MIX.json`.

    Args:
        model: the base with the library's experts, and `tokenizer` its own; None where another engine runs it.

    Raises:
        UserError: with the nearest names, if it means nothing; or if the library or the engine lacks what it needs.
    """
    check_dispatcher(name, library)
    if name == "none" or not (library.names or name == "t2l"):
        return Fixed(Mixture.of({}))
    if name.endswith(".json"):
        return Fixed(Mixture.read(Path(name)))
    if name in library.names:
        return Fixed(Mixture.of({name: 1.0}))
    if name == "embedding":
        return EmbeddingDispatcher.from_library(library)
    if model is None or tokenizer is None:
        raise UserError(
            f"the dispatcher {name!r} looks into the base, which only the native engine lets it; "
            "choose embedding, an expert or a MIX.json"
        )
    if name == "t2l":
        return T2LDispatcher.from_pretrained(network_path(library), model, tokenizer)
    calibration = Calibration.read(calibration_path(library, name), library.names)
    if name == "classifier":
        return PromptDispatcher(
            model,
            tokenizer,
            library.descriptions(),
            expert=CLASSIFIER,
            calibration=calibration or Calibration.of_names(len(library)),
        )
    return PromptDispatcher(model, tokenizer, library.descriptions(), calibration=calibration)


def check_dispatcher(name: str, library: ExpertLibrary) -> None:
    """Raises UserError, before a model is loaded, for what `find_dispatcher` would refuse."""
    if not isinstance(name, str):
        raise UserError(
            f"dispatch takes a name, not a {type(name).__name__}; a dispatcher of your own goes into "
            "SelfAdaptiveModel(model, tokenizer, dispatcher), or takes the place of one that is loaded (.dispatcher)"
        )
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise UserError(f"no such file: {name}")
        for expert in Mixture.read(Path(name)).names:
            library.path(expert)
    elif name not in (*DISPATCHERS, *library.names):
        raise unknown("dispatcher or expert", name, [*DISPATCHERS, *library.names])
    elif name == "classifier" and library.names and library.classifier is None:
        raise UserError(
            f"the library {library.folder} has no classification expert; train one (configs/smollm2-135m/"
            "classifier.yaml is an example) and put it there with `selfadapt experts add FOLDER --classifier`"
        )
    elif name == "t2l" and not network_path(library).is_dir():
        raise UserError(f"there is no {network_path(library)}; put a network there that `selfadapt t2l train` has made")


def network_path(library: ExpertLibrary) -> Path:
    """Where the network that writes experts from prompts lies in a library."""
    return library.folder / "t2l"


def calibration_path(library: ExpertLibrary, reader: str) -> Path:
    """Where the calibration of the prompt dispatcher ("prompt" or "classifier") lies in a library."""
    return library.folder / f"{reader}_calibration.json"
