"""`selfadapt train RECIPE`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selfadapt.verbs import show
from selfadapt.verbs.usage import parsed


@dataclass(frozen=True)
class Train:
    """Train the expert of a recipe. Every field of the recipe is an option too: `train RECIPE --help` lists them."""

    recipe: Positional[str]
    """A YAML file, or a shipped recipe such as smollm2-135m/sums."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["--output-dir"])] = None
    """The expert's folder; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on with a run that was interrupted."""
    shard_base: bool = False
    """Give every process a share of the base instead of all of it: for a base that does not fit one accelerator."""
    log_completions: bool = False
    """Keep what REINFORCE samples, with its reward, in completions.jsonl beside the expert."""
    json: bool = False
    """Print the result as JSON."""


def train(args: list[str]) -> None:
    """`selfadapt train`: our own options first, then those that the recipe's fields give."""
    help_flags = {"-h", "--help"}.intersection(args)
    if help_flags and len(args) == 1:
        tyro.cli(Train, args=args, prog="selfadapt train")
    own = [a for a in args if a not in help_flags]
    options, fields = parsed(
        lambda: tyro.cli(Train, args=own, prog="selfadapt train", return_unknown_args=True), "selfadapt train"
    )
    fields += help_flags

    from selfadapt.recipes import find_recipe, override, read_recipe, train_recipe

    path = find_recipe(options.recipe)
    prog = f"selfadapt train {options.recipe}"
    recipe = parsed(lambda: override(read_recipe(path), fields, prog=prog), prog)

    import torch

    from experts.domains import check_domain
    from experts.training.expert import check_expert_run
    from experts.training.processes import processes
    from experts.training.trainer import LoadedBase
    from selfadapt.base_models import load_base

    check_domain(recipe.domain)
    processes()  # each takes its own accelerator, before a base is loaded onto it
    output = options.output or Path("runs") / path.stem
    run = recipe.run(output, resume=options.resume, log_completions=options.log_completions)
    check_expert_run(run, recipe.domain, recipe.training)
    # A base that is to be shared out is never on one accelerator as a whole.
    shared_out = options.shard_base and torch.accelerator.is_available()
    place = {"device": "cpu", "dtype": recipe.dtype or "auto"} if shared_out else {"dtype": recipe.dtype}
    loaded = load_base(recipe.model, **place, **recipe.base.options())
    base = LoadedBase(*loaded, recipe.model, options.shard_base)
    result = train_recipe(recipe, base, run)
    report = {
        "expert": str(result.folder),
        "parameters": result.parameters,
        "best_step": result.best_step,
        "train_seconds": result.train_seconds,
        **result.comparison(),
    }
    if processes().is_main_process:
        print(f"{recipe.domain.name}: {result.summary()}", file=sys.stderr)
        show(report, options.json, str(result.folder))
