"""A mixture for a file of examples: the few-shot search with everything that it needs, found by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dispatch.few_shot import Found, Search, search
from experts.domains.base import scores_of
from experts.domains.jsonl import Jsonl
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.outside.files import check_new_folder
from selfadapt.base_models import load_base
from selfadapt.two_pass import find_library


def adapt_to_examples(
    examples: Jsonl,
    output: Path,
    options: Search,
    model: str | None = None,
    library: str | Path | ExpertLibrary | None = None,
    on_generation: Callable[[int, float, float], None] = lambda generation, reward, loglikelihood: None,
) -> Found:
    """Searches the mixture of a library's experts that suits all rows of `examples`, and writes it to `output`.

    Args:
        examples: ten or so, and what an answer to them earns.
        output: a file such as `MIX.json`, which `SelfAdaptiveModel.from_pretrained` takes as its `dispatch`.
        model, library: as `SelfAdaptiveModel.from_pretrained` takes them.
        on_generation: as in `dispatch.few_shot.search`.

    Raises:
        UserError: before the base is loaded, if there is no library or it is empty, an example is malformed, or
            `output` cannot be written; afterwards as `search` does.
    """
    experts = find_library(model, library)
    if not experts.names:
        raise UserError(f"the library {experts.folder} is empty; there is nothing to mix")
    rows = examples.rows()
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file, such as MIX.json")
    check_new_folder(output.parent)
    base, tokenizer = load_base(model or experts.base)
    engine = NativeEngine(experts.load(base), tokenizer)
    found = search(engine, experts.names, rows, partial(scores_of, examples), options, on_generation)
    found.mixture.write(output)
    return found
