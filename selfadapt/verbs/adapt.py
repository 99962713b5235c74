"""`selfadapt adapt EXAMPLES.jsonl --output MIX.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from selfadapt.verbs import show


def adapt(
    examples: Positional[Path],
    output: Path,
    judged_by: Literal["exact", "last_number", "last_word", "choice", "math_verify"] = "exact",
    per: Literal["model", "layer", "matrix"] = "model",
    population: int = 32,
    generations: int = 5,
    max_new_tokens: int = 32,
    seed: int = 0,
    model: str | None = None,
    library: Path | None = None,
    json: bool = False,
) -> None:
    """Search the mixture of a library's experts that suits a handful of examples.

    Args:
        examples: JSON Lines with `prompt` and `answer`, ten or so.
        output: where the mixture goes, for `--dispatch MIX.json`.
        judged_by: the reward of an answer.
        per: whether every expert has one weight for the model, for each layer, or for each matrix.
        population: candidates of one generation.
        generations: rounds of the search.
        max_new_tokens: the most that an answer may have.
        seed: of the search.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts; by default those that come with the base.
        json: print the mixture and its score as JSON.
    """
    import sys
    from functools import partial

    from dispatch.few_shot import Search, search
    from experts.domains.base import scores_of
    from experts.domains.jsonl import Jsonl
    from experts.engine import NativeEngine
    from experts.outside.errors import UserError
    from experts.outside.files import check_new_folder
    from selfadapt.base_models import load_base
    from selfadapt.two_pass import find_library

    how = Search(per=per, population=population, generations=generations, max_new_tokens=max_new_tokens, seed=seed)
    experts = find_library(model, library)
    if not experts.names:
        raise UserError(f"the library {experts.folder} is empty; there is nothing to mix")
    domain = Jsonl(name="examples", description="", path=str(examples), judged_by=judged_by)
    rows = domain.rows()
    if output.is_dir():
        raise UserError(f"{output} is a folder; --output names a file, such as MIX.json")
    check_new_folder(output.parent)
    base, tokenizer = load_base(model or experts.base)
    found = search(
        NativeEngine(experts.load(base), tokenizer),
        experts.names,
        rows,
        partial(scores_of, domain),
        how,
        lambda generation, reward, likelihood: print(
            f"generation {generation}/{generations}: best right {reward:.0%}, log-likelihood {likelihood:.2f}",
            file=sys.stderr,
        ),
    )
    found.mixture.write(output)
    document = {
        "mixture": str(output),
        "weights": found.mixture[0],
        "reward": found.reward,
        "loglikelihood": found.loglikelihood,
    }
    show(document, json, str(output))
