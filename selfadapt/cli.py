"""The command line. Answers go to stdout, everything else to stderr; what is heavy is imported by the verb it serves.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

DESCRIPTION = (
    "Language models that adapt themselves to the prompt: experts trained by reinforcement, mixed in two passes."
)


def _print(document: Any, as_json: bool, text: str) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text)


def demo(output: Path = Path("runs/demo"), json: bool = False) -> None:
    """Train an expert on the built-in base and compare the two; ten minutes on two cores.

    Args:
        output: where the expert and the report go. A demo that was interrupted there goes on.
        json: print the report as JSON.
    """
    from selfadapt.demo import demo as run

    report = run(output)
    _print(report, json, str(output / "report.md"))


@dataclass(frozen=True)
class Train:
    """Train the expert of a recipe. Every field of the recipe is an option too: `train RECIPE --help` lists them."""

    recipe: Positional[str]
    """A YAML file, or a shipped recipe such as smollm2-135m/sums."""
    output: Path | None = None
    """The expert's folder; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on with a run that was interrupted."""
    json: bool = False
    """Print the result as JSON."""


def train(args: list[str]) -> None:
    """`selfadapt train`: our own options first, then those that the recipe's fields give."""
    help_flags = {"-h", "--help"}.intersection(args)
    if help_flags and len(args) == 1:
        tyro.cli(Train, args=args, prog="selfadapt train")
    options, fields = tyro.cli(
        Train, args=[a for a in args if a not in help_flags], prog="selfadapt train", return_unknown_args=True
    )
    fields += help_flags

    from selfadapt.recipes import find_recipe, override, read_recipe, train_recipe

    path = find_recipe(options.recipe)
    recipe = override(read_recipe(path), fields, prog=f"selfadapt train {options.recipe}")

    from accelerate import PartialState

    from selfadapt.base_models import load_base
    from selfadapt.report import comparison

    base, tokenizer = load_base(recipe.model)
    output = options.output or Path("runs") / path.stem
    result = train_recipe(recipe, base, tokenizer, output, resume=options.resume)
    report = {
        "expert": str(result.expert),
        "parameters": result.parameters,
        "best_step": result.best_step,
        "train_seconds": result.train_seconds,
        **comparison(result.base_scores, result.expert_scores, result.constant),
    }
    if PartialState().is_main_process:
        _print(report, options.json, str(result.expert))


def generate(
    prompts: Positional[tuple[str, ...]],
    dispatch: str = "none",
    model: str | None = None,
    library: Path | None = None,
    max_new_tokens: int = 64,
    json: bool = False,
) -> None:
    """Answer prompts with the base, an expert, or a mixture.

    Args:
        prompts: one user turn each.
        dispatch: "none" for the plain base, the name of an expert, or a MIX.json.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts; by default those that come with the base.
        max_new_tokens: the most that an answer may have.
        json: print prompts and answers as JSON.
    """
    from experts.errors import UserError
    from selfadapt.two_pass import SelfAdaptiveModel

    if not prompts:
        raise UserError("there is no prompt to answer; give one or more")
    answers = SelfAdaptiveModel.from_pretrained(model, library, dispatch).generate(
        prompts, max_new_tokens=max_new_tokens
    )
    document = [{"prompt": prompt, **asdict(answer)} for prompt, answer in zip(prompts, answers, strict=True)]
    _print({"dispatch": dispatch, "answers": document}, json, "\n\n".join(answer.text for answer in answers))


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
    _print(document, json, "\n".join(lines) or f"{experts.folder} is empty: the base")


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
    _print(document, json, (experts.path(name) / "README.md").read_text(encoding="utf-8"))


def experts_add(expert: Positional[Path], library: Path, name: str | None = None) -> None:
    """Copy an expert into a library, which is made if there is none.

    Args:
        expert: the folder that `selfadapt train` wrote.
        library: the library's folder.
        name: its name there; by default the folder's.
    """
    from experts.errors import UserError
    from experts.library import ExpertLibrary, read_config

    if library.exists():
        experts = ExpertLibrary.open(library)
    else:
        config = read_config(expert)
        if config.base_fingerprint is None or config.base_model_name_or_path is None:
            raise UserError(f"the expert in {expert} does not say which base it belongs to")
        experts = ExpertLibrary.create(library, config.base_model_name_or_path, config.base_fingerprint)
    print(experts.add(expert, name))


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


VERBS: dict[str, Callable[..., Any]] = {"demo": demo, "train": Train, "generate": generate, "experts": experts}
EXPERTS: dict[str, Callable[..., Any]] = {
    "list": experts_list,
    "show": experts_show,
    "add": experts_add,
    "remove": experts_remove,
}


def _run(args: list[str]) -> None:
    if args[:1] == ["train"] and len(args) > 1:
        train(args[1:])
    elif args[:1] == ["experts"]:
        tyro.extras.subcommand_cli_from_dict(
            EXPERTS, prog="selfadapt experts", description="Manage libraries of experts.", args=args[1:]
        )
    else:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="selfadapt", description=DESCRIPTION, args=args)


def main() -> None:
    """The console script."""
    # PyTorch's threads spin while they wait, which costs more on a busy machine than it saves on an idle one
    # (benchmarks/busy_core.py). OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Deprecations between transformers and TRL are not the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        from experts.errors import UserError

        # An OSError is the machine's: a full disk, a folder that may not be read. It names the file itself.
        if not isinstance(error, UserError | OSError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
