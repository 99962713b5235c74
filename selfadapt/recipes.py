"""A recipe: one YAML file that says how one expert is made, and the types that its fields must have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from accelerate import PartialState
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch.embedding import PROMPTS, write_prompts
from experts.domains import KINDS, Jsonl, ReasoningGym, WordProblems
from experts.errors import UserError, unknown
from experts.svf import SVFConfig
from experts.training.reinforce import Reinforce
from experts.training.run import Result, train_expert


@dataclass(frozen=True)
class Adapt:
    """Which matrices the expert adapts."""

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int | None = None
    """Adapt only this many of the largest singular values of each matrix; None adapts all of them."""
    layers_to_transform: list[int] | None = None
    """Adapt only these layers."""

    def config(self) -> SVFConfig:
        return SVFConfig(**asdict(self), task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Recipe:
    """Base, domain, adapted matrices and training of one expert."""

    domain: ReasoningGym | Jsonl | WordProblems
    training: Annotated[Reinforce, tyro.conf.arg(name="")]
    adapt: Annotated[Adapt, tyro.conf.arg(name="")] = field(default_factory=Adapt)
    model: str = "smollm2-135m"
    """A built-in name, a hub id, or a folder."""
    test_size: int = 256
    """Held-out problems on which the base and the finished expert are compared."""

    def to_dict(self) -> dict[str, Any]:
        """What the YAML file would say, every default spelled out."""
        kind = next(name for name, cls in KINDS.items() if isinstance(self.domain, cls))
        return {**asdict(self), "domain": {"kind": kind, **asdict(self.domain)}}


def train_recipe(
    recipe: Recipe,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    resume: bool,
    replace: bool = False,
) -> Result:
    """`train_expert` with everything that the recipe says; raises what that raises.

    Beside the expert lie the embeddings of some of its prompts, for dispatch, if sentence-transformers is installed.
    """
    result = train_expert(
        base,
        tokenizer,
        recipe.domain,
        recipe.adapt.config(),
        recipe.training,
        output,
        base_name=recipe.model,
        recipe=recipe.to_dict(),
        test_size=recipe.test_size,
        resume=resume,
        replace=replace,
    )
    if PartialState().is_main_process and find_spec("sentence_transformers"):
        write_prompts(result.expert, recipe.domain.load("train")[:PROMPTS]["prompt"])
    return result


def configs_folder() -> Path:
    """The recipes that come with the package: beside it in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_recipe(name: str) -> Path:
    """A file, or a shipped recipe such as `smollm2-135m/sums`.

    Raises:
        UserError: if there is neither, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {
        path.relative_to(configs_folder()).with_suffix("").as_posix(): path
        for path in configs_folder().glob("*/*.yaml")
    }
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    raise unknown("recipe", name, shipped)


def read_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        UserError: one line that names the file, the field, and what it should be.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} is not a recipe: it must hold {', '.join(f.name for f in fields(Recipe))}")
    domain = document.get("domain")
    if not isinstance(domain, dict) or "kind" not in domain:
        raise UserError(f"{path}: domain needs a kind, one of {', '.join(KINDS)}")
    if domain["kind"] not in KINDS:
        raise UserError(f"{path}: {unknown('domain', domain['kind'], KINDS)}")
    domain = dict(domain)
    document = {**document, "domain": _checked(KINDS[domain.pop("kind")], domain, path, "domain.")}
    if "training" in document:
        document["training"] = _checked(Reinforce, document["training"], path, "training.")
    if "adapt" in document:
        document["adapt"] = _checked(Adapt, document["adapt"], path, "adapt.")
    return _checked(Recipe, document, path, "")


def override(recipe: Recipe, args: Sequence[str], prog: str) -> Recipe:
    """The recipe with fields replaced from the command line: `--learning-rate 1e-3 --domain.seed 5`."""
    return tyro.cli(
        Recipe, default=recipe, args=list(args), prog=prog, config=(tyro.conf.AvoidSubcommands,), description=""
    )


def _checked(cls: type, document: Any, path: Path, prefix: str) -> Any:
    """An instance of a dataclass from the mapping that a file holds for it."""
    if not isinstance(document, dict):
        raise UserError(f"{path}: {prefix.rstrip('.')} must be a mapping")
    known = [f.name for f in fields(cls)]
    for name in document:
        if name not in known:
            raise UserError(f"{path}: {unknown('field', f'{prefix}{name}', [prefix + k for k in known])}")
    try:
        return TypeAdapter(cls).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = prefix + ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
