"""`selfadapt adapt EXAMPLES.jsonl --output MIX.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from selfadapt.verbs import show
from selfadapt.verbs.loading import FromOptions, Loading


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
    base: FromOptions = Loading(),
    json: bool = False,
) -> None:
    """Search for the mixture of a library's experts that suits a handful of examples.

    Args:
        examples: JSON Lines with `prompt` and `answer`, ten or so.
        output: the file for the mixture, for `--dispatch MIX.json`.
        judged_by: how answers are rewarded.
        per: whether every expert has one weight for the model, for each layer, or for each matrix.
        population: candidates per generation.
        generations: rounds of the search.
        max_new_tokens: the most tokens in an answer.
        seed: the seed of the search.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        base: how the base is loaded.
        json: print the mixture and its score as JSON.
    """
    import sys

    from dispatch.few_shot import Search
    from experts.domains.jsonl import Jsonl
    from experts.outside.errors import UserError
    from selfadapt.named_experts import adapt_to_examples

    if output.is_dir():
        raise UserError(f"{output} is a folder; --output must be a file, such as MIX.json")
    options = Search(per=per, population=population, generations=generations, max_new_tokens=max_new_tokens, seed=seed)
    found = adapt_to_examples(
        Jsonl(name="examples", description="", path=str(examples), judged_by=judged_by),
        output,
        options,
        model,
        library,
        lambda generation, reward, likelihood: print(
            f"generation {generation}/{generations}: best {reward:.0%} right, log-likelihood {likelihood:.2f}",
            file=sys.stderr,
        ),
        **base.options(),
    )
    document = {
        "mixture": str(output),
        "weights": found.mixture[0],
        "reward": found.reward,
        "loglikelihood": found.loglikelihood,
    }
    show(document, json, str(output))
