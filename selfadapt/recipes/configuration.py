"""One mechanism for everything that a YAML file configures: the file is found, read, and made into a dataclass.

The dataclass says everything: its fields and their types are what the file may hold, a field that is a dataclass is a
block of the file, and a field with a `Choice` is a block that first chooses its own class. A class may say what its
fields are called elsewhere (`also_called`), and which fields of a block may stand at the top (`at_top`). The command
line has an option for every field. If renaming is not enough, a class translates the block itself (`in_our_names`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from experts.outside.errors import UserError, unknown
from experts.outside.fields import as_document
from experts.outside.reading import read_text

T = TypeVar("T")

DATA = re.compile(r"\.(?:csv|tsv|jsonl|parquet)(?:\.(?:gz|bz2|xz|zst|zip))?\Z", re.IGNORECASE)


@dataclass(frozen=True, eq=False)  # what stands in an annotation must be hashable
class Choice:
    """Annotates a field: the `key` in the block of that name says which of the classes the block spells out.

        adapt: Annotated[SVF | LoRA, Choice("method", {"svf": SVF, "lora": LoRA}, default="svf")]

    A class with a field of the key's name gets the key's value in it, and may be listed under several names.
    """

    key: str
    classes: Mapping[str, type]
    default: str | None = None
    """What is chosen if the key is missing; None requires the key."""
    noun: str | None = None
    """What the names are called in errors; by default the key."""

    def name_in(self, block: Mapping[str, Any]) -> Any:
        return block.get(self.key, self.default)

    def chosen(self, block: Mapping[str, Any], where: str) -> tuple[type, dict[str, Any]]:
        """The class that a block names, and its fields of that class; raises UserError if there is no such class."""
        name = self.name_in(block)
        if name is None:
            raise UserError(f"{where} needs a {self.key}, one of {', '.join(self.classes)}")
        if str(name) not in self.classes:
            raise unknown(self.noun or self.key, str(name), self.classes)
        cls = self.classes[str(name)]
        own = self.key in {field.name for field in fields(cls)}
        return cls, {field: value for field, value in block.items() if own or field != self.key}


def choices_of(cls: type) -> dict[str, Choice]:
    """The fields of a dataclass whose blocks choose their class, and what they choose from."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: choice for name, hint in hints.items() if (choice := _choice(hint))}


def _choice(hint: Any) -> Choice | None:
    return next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Choice)), None)


def configs_folder() -> Path:
    """The folder of the files that come with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def find_file(noun: str, name: str, shipped: Iterable[Path], root: Path) -> Path:
    """The path of a file, or of a shipped one named by its path below `root` without the suffix.

    Raises:
        UserError: if there is neither, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in shipped}
    wanted = name.removesuffix(".yaml")
    if wanted in names:
        return names[wanted]
    if command := _commands().get(wanted):
        raise UserError(f"{name!r} is not for this command but for `selfadapt {command}`")
    raise unknown(noun, name, names)


def _commands() -> dict[str, str]:
    """Every shipped file, by its name → the command that takes it."""
    root = configs_folder()
    commands: dict[str, str] = {}
    for path in root.glob("**/*.yaml"):
        name = path.relative_to(root).with_suffix("").as_posix()
        kind = path.parent.name
        if kind == "experiments":
            commands |= dict.fromkeys((name, path.stem), f"compare {path.stem}")
        else:
            commands[name] = f"{'t2l train' if kind == 't2l' else 'train'} {name}"
    return commands


def find_recipe(name: str) -> Path:
    """The file of an expert's recipe: a path, or the name of a shipped one such as `smollm2-135m/sums`.

    Raises:
        UserError: if there is neither, with the nearest names.
    """
    root = configs_folder()
    return find_file(
        "recipe", name, (path for path in root.glob("*/*.yaml") if path.parent.name != "experiments"), root
    )


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses duplicate keys, as YAML demands; PyYAML takes the last of them."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; raises UserError if it is not YAML."""
    if DATA.search(path.name):
        kind = "jsonl" if ".jsonl" in path.name.lower() else "hub"
        raise UserError(
            f"{path} holds data, but a YAML file is needed, such as a recipe whose domain names the data: "
            f"{{kind: {kind}, path: {path}, …}}"
        )
    text = read_text(path)
    try:
        return yaml.load(text, _EachKeyOnce)
    # Meaningless tags and dates raise Python's own errors.
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


def make(cls: type[T], document: Any, where: Path | str) -> T:
    """The dataclass that a document spells out.

    Args:
        where: what an error names beside the field, such as the file.

    Raises:
        UserError: one line that names the place, the field, and what it should be.
    """
    if not isinstance(document, dict):
        raise UserError(f"{where} must be a mapping of {', '.join(field.name for field in fields(cls))}")  # type: ignore[arg-type]
    try:
        return _made(cls, in_our_names(cls, document, whole=True), ())
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def in_our_names(cls: type, document: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """A dataclass's document, with the names that its blocks' fields have elsewhere replaced by ours.

    Args:
        whole: whether a block that does not choose its class is of the default one; otherwise it may be of any.

    Raises:
        UserError: for a block that has a field under both names, or a field that stands in two places.
    """
    translated = _in_their_blocks(cls, document)
    for block, choice in choices_of(cls).items():
        fields_of_block = translated.get(block)
        if not isinstance(fields_of_block, dict):
            continue
        name = choice.name_in(fields_of_block) if whole else fields_of_block.get(choice.key)
        fields_of_block = getattr(choice.classes.get(str(name)), "in_our_names", dict)(fields_of_block)
        theirs = _also_called(choice, name)
        _check_one_name(block, fields_of_block, theirs)
        translated[block] = {theirs.get(name, name): value for name, value in fields_of_block.items()}
    return translated


def _check_one_name(where: str, given: Iterable[str], theirs: Mapping[str, str]) -> None:
    """Raises UserError for a field that is given under both its name elsewhere and ours."""
    given = set(given)
    for name, ours in theirs.items():
        if {name, ours} <= given:
            raise UserError(f"{where} has both {name} and {ours}, two names for one thing: leave one of them out")


def _in_their_blocks(cls: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document, with top-level fields that belong in a block, by the class's `at_top`, moved into it."""
    placed = dict(document)
    for name, block in getattr(cls, "at_top", {}).items():
        inner = placed.get(block) or {}
        if name in placed and isinstance(inner, dict):
            if name in inner:
                raise UserError(f"{name} appears twice, at the top and in {block}: leave one of them out")
            placed[block] = inner | {name: placed.pop(name)}
    return placed


def _also_called(choice: Choice, name: Any = None) -> dict[str, str]:
    """What a class's fields are called elsewhere → our names; those of all classes, if none is named."""
    named = choice.classes.get(str(name))
    kinds = choice.classes.values() if named is None else [named]
    return {theirs: ours for kind in kinds for theirs, ours in getattr(kind, "also_called", {}).items()}


def _made(kind: Any, block: Any, path: tuple[str, ...]) -> Any:
    """An instance of a dataclass, or of the one that its block chooses; `path` leads to the block."""

    def at(name: Any) -> str:
        return ".".join([*path, str(name)])

    if not isinstance(block, dict):
        raise UserError(f"{'.'.join(path)} must be a mapping")
    cls = kind
    if choice := _choice(kind):
        cls, block = choice.chosen(block, ".".join(path))
    block = _with_further(cls, block)
    hints, known = get_type_hints(cls, include_extras=True), {field.name: field for field in fields(cls)}
    optional = {name for name, field in known.items() if not _is_required(field) and _is_block(hints[name])}
    block = {name: value for name, value in block.items() if value is not None or name not in optional}
    for name in block:
        if name not in known:
            if instead := getattr(cls, "elsewhere", lambda name: "")(name):
                raise UserError(f"{at(name)} is not a field here: {instead}")
            raise unknown("field", at(name), map(at, known))
    # If a choice has to be made, the error asks for that, not for its field.
    block = {name: {} for name in choices_of(cls) if _is_required(known[name])} | block
    blocks = {name for name in block if _is_block(hints[name]) and get_origin(hints[name]) is not dict}
    values = {
        name: _made(hints[name], value, (*path, name)) if name in blocks else value for name, value in block.items()
    }
    try:
        made = _validator(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # a check of the dataclass itself, which names the field
            raise UserError(f"{first['ctx']['error']}") from error
        raise UserError(f"{'.'.join([*path, *map(str, first['loc'])])}: {first['msg']}") from error
    for name, value in block.items():
        if isinstance(value, bool) and not isinstance(getattr(made, name), bool):  # pydantic takes true as 1
            raise UserError(f"{at(name)}: must be a number, not {str(value).lower()}")
    return made


def _is_block(hint: Any) -> bool:
    return bool(_choice(hint) or is_dataclass(hint) or get_origin(hint) is dict)


def _with_further(cls: type, block: dict[Any, Any]) -> dict[Any, Any]:
    """A block, with what is no field moved into the mapping that the class names in `further`, if it names one."""
    further = getattr(cls, "further", None)
    if further is None or not isinstance(block.get(further, {}), dict):
        return block
    known = {field.name for field in fields(cls)}
    rest = {name: value for name, value in block.items() if name not in known}
    own = {name: value for name, value in block.items() if name in known}
    return own | {further: own.get(further, {}) | rest}


_validator = functools.cache(TypeAdapter)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def spell_out(made: Any) -> dict[str, Any]:
    """The file of a dataclass as a document: every default is spelled out, except those of fields added later."""
    document = as_document(made)
    for field, choice in choices_of(type(made)).items():
        name = next(name for name, cls in choice.classes.items() if type(getattr(made, field)) is cls)
        if name != choice.default:
            document[field] = {choice.key: name, **document[field]}
    return document


def merge(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A document with changes laid over it, field by field."""
    merged = dict(document)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def overlay(cls: type, document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a dataclass with changes laid over it, field by field.

    Where a change chooses another class for a block, the fields that both know keep their values and the others are
    dropped.
    """
    merged = merge(document, changes)
    for field, choice in choices_of(cls).items():
        before, after = (choice.name_in(d.get(field) or {}) for d in (document, merged))
        if after != before and str(after) in choice.classes:
            known = {choice.key, *(f.name for f in fields(choice.classes[str(after)])), *(changes.get(field) or {})}
            merged[field] = {name: value for name, value in merged[field].items() if name in known}
    return merged


def override(made: T, args: Sequence[str], prog: str) -> T:
    """The dataclass with fields replaced from the command line: `--learning-rate 1e-3 --domain.seed 5`.

    Raises:
        UserError: for a field that is given under two names.
        SystemExit: for wrong usage, and after `--help`, as tyro does.
    """
    config = (tyro.conf.AvoidSubcommands,)
    ours = _in_our_options(made, args)
    return tyro.cli(type(made), default=made, args=ours, prog=prog, config=config, description="")


def _in_our_options(made: Any, args: Sequence[str]) -> list[str]:
    """A dataclass's options, with the names that its fields have elsewhere replaced by ours."""
    hints = get_type_hints(type(made), include_extras=True)
    options: dict[str, str] = {}
    for block, choice in choices_of(type(made)).items():
        flat = any(getattr(each, "name", None) == "" for each in hints[block].__metadata__)  # tyro.conf.arg(name="")
        prefix = "" if flat else f"{block}."
        chosen = next(name for name, cls in choice.classes.items() if cls is type(getattr(made, block)))
        options |= {
            _option(prefix + name): _option(prefix + ours) for name, ours in _also_called(choice, chosen).items()
        }
    said = [arg.partition("=") for arg in args]
    names = [_option(arg[2:]) if arg.startswith("--") else arg for arg, _, _ in said]
    _check_one_name("the command line", names, options)
    return [options.get(name, arg) + equals + value for name, (arg, equals, value) in zip(names, said, strict=True)]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
