"""A recipe: one YAML file that says how one expert is made, and the types that its fields must have."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch.embedding import PROMPTS, write_prompts
from experts.domains import (
    KINDS,
    Code,
    Gsm8k,
    HendrycksMath,
    Jsonl,
    MultipleChoice,
    ReasoningGym,
    Vqa,
    WordProblems,
)
from experts.outside.errors import SEEDS, UserError, check_whole, unknown
from experts.outside.reading import read_text
from experts.training.methods import METHODS, SVF, Adapt
from experts.training.reinforce import Reinforce
from experts.training.run import Result, check_run, train_expert
from experts.training.supervised import NextToken
from selfadapt.classification import Classification
from selfadapt.usage import parsed

# The name of an objective, a method or a kind of domain chooses what else its block of the file may say.
OBJECTIVES: dict[str, type] = {"reinforce": Reinforce, "next_token": NextToken}
BLOCKS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("domain", "kind", {**KINDS, "classification": Classification}),
    ("training", "objective", OBJECTIVES),
    ("adapt", "method", METHODS),
)
DEFAULTS = {"objective": "reinforce", "method": "svf"}


@dataclass(frozen=True)
class Recipe:
    """Base, domain, adapted matrices and training of one expert.

    In the file, `training.objective` is reinforce or next_token, and `adapt.method` is svf or one of its rivals; the
    first of each, where it is not given.
    """

    domain: ReasoningGym | Jsonl | WordProblems | Gsm8k | HendrycksMath | MultipleChoice | Code | Vqa | Classification
    training: Annotated[Reinforce | NextToken, tyro.conf.arg(name="")]
    adapt: Annotated[Adapt, tyro.conf.arg(name="")] = field(default_factory=SVF)
    model: str = "smollm2-135m"
    """A built-in name, a hub id, or a folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Of the base; by default float32 on a CPU, and the checkpoint's own (auto) on an accelerator. z is
    float32 all the same."""
    test_size: int = 256
    """Held-out problems on which the base and the finished expert are compared."""

    def __post_init__(self) -> None:
        check_whole("test_size", self.test_size)
        check_whole("training.seed", self.training.seed, least=0, most=SEEDS)
        try:
            self.adapt.config()
        except ValueError as error:
            raise UserError(f"adapt: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What the YAML file would say, every default spelled out."""
        document = asdict(self)
        for block, key, classes in BLOCKS:
            chosen = next(name for name, cls in classes.items() if type(getattr(self, block)) is cls)
            if DEFAULTS.get(key) != chosen:
                document[block] = {key: chosen, **document[block]}
        return document


def check_recipe(recipe: Recipe, output: Path, *, resume: bool) -> None:
    """Finds what is wrong with a recipe's run before its base is loaded; raises UserError, as `check_run` does."""
    check_run(recipe.domain, recipe.training, output, recipe=recipe.to_dict(), resume=resume)


def train_recipe(
    recipe: Recipe,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    resume: bool,
    replace: bool = False,
    base_scores: list[float] | None = None,
    shard_base: bool = False,
) -> Result:
    """`train_expert` with everything that the recipe says; raises what that raises.

    Beside an expert that answers lie the embeddings of some of its prompts, for dispatch, if sentence-transformers is
    installed.
    """

    def beside(folder: Path) -> None:
        try:
            write_prompts(folder, recipe.domain.load("train")[:PROMPTS]["prompt"])
        except UserError as error:
            print(f"the expert is dispatched to by its description alone: {error}", file=sys.stderr)

    answers = isinstance(recipe.adapt, SVF) and not isinstance(recipe.domain, Classification)
    return train_expert(
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
        base_scores=base_scores,
        shard_base=shard_base,
        beside=beside if answers and find_spec("sentence_transformers") else lambda folder: None,
    )


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
        if path.parent.name != "experiments"
    }
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    raise unknown("recipe", name, shipped)


def read_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        UserError: one line that names the file, the field, and what it should be.
    """
    return make_recipe(read_yaml(path), path)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not keep: it takes the last of equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file says; raises UserError, if it is not YAML."""
    text = read_text(path)
    try:
        return yaml.load(text, _EachKeyOnce)
    # Tags and dates that mean nothing end in errors of Python's own.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def make_recipe(document: Any, where: Path | str) -> Recipe:
    """The recipe that `document` spells out; raises UserError, as a mistake in what `where` names."""
    if not isinstance(document, dict):
        raise UserError(f"{where} is not a recipe: it must hold {', '.join(f.name for f in fields(Recipe))}")
    document = {"domain": {}, **document}
    for block, key, classes in BLOCKS:
        if block in document:
            document[block] = chosen(document[block], where, block, key, classes)
    return checked(Recipe, document, where, "")


def overlay(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's document with changes laid over it, field by field.

    Where a change chooses another method, objective or kind of domain, the fields that both know keep their values and
    the others are dropped.
    """
    merged = merge(document, changes)
    for block, key, classes in BLOCKS:
        before, after = (d.get(block) or {} for d in (document, merged))
        name = str(after.get(key, DEFAULTS.get(key)))
        if name != before.get(key, DEFAULTS.get(key)) and name in classes:
            known = {key, *(f.name for f in fields(classes[name])), *(changes.get(block) or {})}
            merged[block] = {field: value for field, value in after.items() if field in known}
    return merged


def merge(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A document with changes laid over it, field by field."""
    merged = dict(document)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def override(recipe: Recipe, args: Sequence[str], prog: str) -> Recipe:
    """The recipe with fields replaced from the command line: `--learning-rate 1e-3 --domain.seed 5`."""
    config = (tyro.conf.AvoidSubcommands,)
    return parsed(lambda: tyro.cli(Recipe, default=recipe, args=list(args), prog=prog, config=config, description=""))


def chosen(document: Any, where: Path | str, block: str, key: str, classes: Mapping[str, Any]) -> Any:
    """An instance of the class that a block chooses by its `key`."""
    if not isinstance(document, dict):
        raise UserError(f"{where}: {block} must be a mapping")
    name = document.get(key, DEFAULTS.get(key))
    if name is None:
        raise UserError(f"{where}: {block} needs a {key}, one of {', '.join(classes)}")
    if str(name) not in classes:
        raise UserError(f"{where}: {unknown('domain' if block == 'domain' else key, str(name), classes)}")
    cls = classes[name]
    if key not in {f.name for f in fields(cls)}:
        document = {k: v for k, v in document.items() if k != key}
    return checked(cls, document, where, f"{block}.")


def checked(cls: type, document: dict[str, Any], where: Path | str, prefix: str) -> Any:
    """An instance of a dataclass from the mapping that a file holds for it."""
    known = [f.name for f in fields(cls)]
    for name in document:
        if name not in known:
            raise UserError(f"{where}: {unknown('field', f'{prefix}{name}', [prefix + k for k in known])}")
    try:
        made: Any = TypeAdapter(cls).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = prefix + ".".join(str(part) for part in first["loc"])
        # What our own check says names the field itself.
        said = first["ctx"]["error"] if first["type"] == "value_error" else f"{name}: {first['msg']}"
        raise UserError(f"{where}: {said}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for name, value in document.items():
        if isinstance(value, bool) and not isinstance(getattr(made, name), bool):  # as which pydantic takes 1 and 0
            raise UserError(f"{where}: {prefix}{name}: must be a number, not {str(value).lower()}")
    return made
