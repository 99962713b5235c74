"""Adds an expert to a library, transfers it to another base, or mixes experts for a file of examples, with bases and
libraries given by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from dispatch.embedding import embed_prompts, encoder_of
from dispatch.few_shot import Found, Search, search
from experts.attaching import check_lora
from experts.domains.base import scores_of
from experts.domains.jsonl import Jsonl
from experts.engine import NativeEngine
from experts.exchange.hub import EXPERT, LIBRARY, folder_of
from experts.exchange.lora_folder import peft_type, read_lora
from experts.exchange.transfer import Comparison, check_shapes, compare_bases, transfer
from experts.expert import Expert
from experts.library import ExpertLibrary, UnknownBase, check_apart, check_name
from experts.mixture import Mixture
from experts.outside.base_names import public_name
from experts.outside.chats import read_prompt
from experts.outside.errors import UserError
from experts.outside.files import check_new_folder, expand
from experts.outside.reading import read_objects
from experts.svf.fingerprint import Sketch, fingerprint, refuse_other_base, sketch
from experts.text_to_lora.encoder import BUILT_IN
from selfadapt.base_models import BaseOptions, load_base, load_shapes
from selfadapt.two_pass import find_expert, find_library


def add_expert(
    expert: str | Path,
    library: str | Path,
    name: str | None = None,
    *,
    classifier: bool = False,
    model: str | None = None,
    description: str | None = None,
) -> str:
    """Copies the folder of an expert, or of a LoRA, into a library, which is made if there is none.

    Args:
        expert: the folder of an SVF adapter, or of a LoRA that PEFT saved, or its repository on the hub (owner/name).
        library: the library's folder.
        name: its name there; by default the folder's, or the repository's.
        classifier: whether it names domains instead of answering.
        model: the base that it was trained on: a built-in name, a hub id or a folder. It is loaded only if the expert's
            folder does not say, or, for a LoRA, if the library has another name for its base.
        description: what it is for, in one sentence, instead of what its folder says.

    Returns:
        Its name in the library.

    Raises:
        UnknownBase: if neither `model` nor the folder says which base it was trained on. No library is made then.
        UserError: as `ExpertLibrary.create` and `ExpertLibrary.add` do.
    """
    library = Path(library)
    if expand(expert).is_file():
        raise UserError(f"{expert} is a file; an expert, or a LoRA, is a folder")
    if not classifier:
        name = expand(expert).resolve().name if name is None else name
        check_name(name)
    folder = folder_of(expert, EXPERT, LIBRARY)
    if (folder / LIBRARY).is_file():
        raise UserError(
            f"{expert} is a library, not an expert: add one of the experts in it (if it is on the hub, pull it first "
            "with `selfadapt experts pull`)"
        )
    check_apart(folder, library)
    into = ExpertLibrary.open(library) if (library / "library.json").is_file() else None
    if peft_type(folder) == "LORA":
        into, base = _for_lora(folder, library, into, model)
    else:
        into, base = _for_expert(folder, library, into, model)
    return into.add(folder, name, classifier=classifier, base=base, description=description)


def _for_expert(
    expert: Path, library: Path, into: ExpertLibrary | None, model: str | None
) -> tuple[ExpertLibrary, PreTrainedModel | None]:
    """The library that an expert goes into, and its base if that had to be loaded."""
    read = Expert.read(expert)
    base = None
    if read.fingerprint is None and model is not None:
        base, _ = load_base(model)
        read = replace(read, fingerprint=fingerprint(base), sketch=sketch(base))
    base_name = model or read.base
    if read.fingerprint is None or base_name is None:
        raise UnknownBase(f"the expert in {expert}")
    return _made(library, base_name, read.fingerprint, read.sketch) if into is None else into, base


def _for_lora(
    folder: Path, library: Path, into: ExpertLibrary | None, model: str | None
) -> tuple[ExpertLibrary, PreTrainedModel | None]:
    """The same for a LoRA, whose folder has only the name of its base."""
    what, lora = f"the LoRA in {folder}", read_lora(folder)
    if (named := model or lora.base) is None:
        raise UnknownBase(what)
    if into is not None and public_name(named) == public_name(into.base) == public_name(lora.base):
        check_lora(what, lora, load_shapes(into.base))
        return into, None
    try:
        base, _ = load_base(named)
    except UserError as error:
        if model is not None:
            raise
        raise UnknownBase(what, f"names the base {lora.base!r}, which cannot be loaded ({error})") from error
    check_lora(what, lora, base)
    return _made(library, named, fingerprint(base), sketch(base)) if into is None else into, base


def _made(library: Path, base: str, base_fingerprint: str, base_sketch: Sketch | None) -> ExpertLibrary:
    """A new library, or the one that another program has made there meanwhile."""
    try:
        return ExpertLibrary.create(library, base, base_fingerprint, base_sketch)
    except UserError:
        if (library / LIBRARY).is_file():
            return ExpertLibrary.open(library)
        raise


def embed_examples(examples: Path, library: Path) -> tuple[str, Tensor]:
    """A library's encoder, and the vectors [n, d] that it gives the prompts in a file. The library need not exist yet.

    `dispatch.embedding.write_vectors` stores them beside an expert or a LoRA, and `embedding` finds it by them.

    Args:
        examples: JSON Lines, each with a `prompt`, a string or a chat.

    Raises:
        UserError: naming the line, if one is malformed; if there is none, or the encoder is missing.
    """
    prompts = []
    for where, _, fields in read_objects(examples):
        try:
            prompts.append(read_prompt(fields.get("prompt"), "its 'prompt'"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not prompts:
        raise UserError(f"{examples} holds no prompts")
    exists = (library / "library.json").is_file()
    encoder = encoder_of(ExpertLibrary.open(library)) if exists else BUILT_IN
    return encoder, embed_prompts(prompts, encoder)


@dataclass(frozen=True)
class Transferred:
    """An expert on another base."""

    origin: str | None
    """The fingerprint of the base that it was trained on."""
    expert: Expert
    """The expert of the other base; `write(folder)` saves it."""
    comparisons: list[Comparison]
    """How alike the two bases are, matrix by matrix; empty if that was not asked for."""


def transfer_expert(
    expert: str,
    to: str,
    *,
    shuffled: int | None = None,
    compare: bool = False,
    library: str | Path | None = None,
    model: str | None = None,
) -> Transferred:
    """Makes an expert of one base an expert of another of the same shapes (`experts.exchange.transfer`).

    Args:
        expert: an expert of the library, an expert's folder, or a `MIX.json`.
        to: the other base: a built-in name, a hub id or a folder.
        shuffled: a seed for the control, in which z is permuted within each matrix.
        compare: whether to load the expert's own base too and compare it with the other.
        library: a folder of experts; by default those that come with the base.
        model: the base that the expert was trained on; by default the one that it names.

    Raises:
        UnknownBase: if nothing says which base the expert was trained on.
        UserError: if there is no such expert or base, the shapes differ, the expert already belongs to the other base,
            or `model` is not the base it was trained on.
    """
    trained = find_expert(expert, library, model)
    own = model or trained.base
    if own is None:
        raise UnknownBase(f"the expert {expert}")
    other, _ = load_base(to)
    check_shapes(trained, load_shapes(own), other)
    moved = transfer(trained, other, to, shuffled)
    comparisons = []
    if compare:
        base, _ = load_base(own)
        if trained.fingerprint is not None:
            refuse_other_base(f"the expert {expert}", trained.fingerprint, trained.sketch, base)
        comparisons = compare_bases(trained, base, other)
    return Transferred(trained.fingerprint, moved, comparisons)


def adapt_to_examples(
    examples: Jsonl,
    output: str | Path,
    options: Search,
    model: str | None = None,
    library: str | Path | ExpertLibrary | None = None,
    on_generation: Callable[[int, float, float], None] = lambda generation, reward, loglikelihood: None,
    **base_options: Unpack[BaseOptions],
) -> Found:
    """Searches for the mixture of a library's experts that suits all rows of `examples`, and writes it to `output`.

    Args:
        examples: ten or so, with the reward of an answer.
        output: a file such as `MIX.json`, which `SelfAdaptiveModel.from_pretrained` takes as its `dispatch`.
        model, library, base_options: as `SelfAdaptiveModel.from_pretrained` takes them.
        on_generation: as in `dispatch.few_shot.search`.

    Raises:
        UserError: before the base is loaded, if there is no library or it is empty, an example is malformed, or
            `output` cannot be written or is a file other than a mixture; afterwards as `search` does.
    """
    experts = find_library(model, library)
    if not experts.names:
        raise UserError(f"the library {experts.folder} is empty, so there is nothing to mix; add experts to it first")
    rows, output = examples.rows(), Path(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file, such as MIX.json")
    _refuse_other_files(output)
    check_new_folder(output.parent)
    base, tokenizer = load_base(model or experts.base, **base_options)
    engine = NativeEngine(experts.load(base), tokenizer)
    found = search(engine, experts.names, rows, partial(scores_of, examples), options, on_generation)
    found.mixture.write(output)
    return found


def _refuse_other_files(output: Path) -> None:
    """Raises UserError if there is a file that is no mixture: only an older mixture is replaced."""
    if output.exists():
        try:
            Mixture.read(output)
        except UserError as error:
            raise UserError(f"{output} exists already, and is not a mixture; choose another file") from error
