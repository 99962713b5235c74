"""The reference of recipes: every field of every block, with its type, its default and what its dataclass says."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mkdocs.structure.files import File, Files

from selfadapt.grid import experiment
from selfadapt.recipes.configuration import choices_of
from selfadapt.recipes.expert import Recipe
from selfadapt.recipes.text_to_lora import TextToLoraRecipe

RECIPES: Mapping[str, type] = {
    "An expert's recipe": Recipe,
    "A Text-to-LoRA recipe": TextToLoraRecipe,
}
INTRODUCTION = """# Recipe fields

A recipe is a YAML file. Every field below may stand in it; one without a default must. Each is an option of the command
line, too: `selfadapt train RECIPE --help` lists them with the recipe's values. A field of a block is written
`block.field` there, but for those of `training` and `adapt`, whose names stand alone.
"""


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "reference/recipes.md", content=page()))
    return files


def page() -> str:
    sections = [INTRODUCTION]
    for title, cls in RECIPES.items():
        sections.append(f"## {title}\n\n{about(cls)}\n\n{table(cls)}")
        sections += [f"### {name}\n\n{about(block)}\n\n{table(block)}" for name, block in blocks(cls)]
    return "\n\n".join([*sections, f"## An experiment\n\n{inspect.cleandoc(experiment.__doc__ or '')}"])


def blocks(cls: type, inside: str = "") -> Iterator[tuple[str, type]]:
    """The blocks of a recipe and those inside them: how each is written, and its class."""
    choices = choices_of(cls)
    for name, hint in get_type_hints(cls).items():
        where = f"`{inside}{name}`"
        if choice := choices.get(name):
            for block in dict.fromkeys(choice.classes.values()):
                names = [f"`{own}`" for own, other in choice.classes.items() if other is block]
                yield f"{where} with `{choice.key}` {', '.join(names)}", block
                yield from blocks(block, f"{inside}{name}.")
        elif is_dataclass(hint) and isinstance(hint, type):
            yield where, hint
            yield from blocks(hint, f"{inside}{name}.")


def about(cls: type) -> str:
    said = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if said.startswith(f"{cls.__name__}(") else said  # what dataclasses say of themselves


def table(cls: type) -> str:
    hints, texts = get_type_hints(cls), docstrings(cls)
    theirs = {ours: name for name, ours in getattr(cls, "also_called", {}).items()}
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for own in fields(cls):
        if not own.init:
            continue
        name = f"`{own.name}`" + (f" (`{theirs[own.name]}`)" if own.name in theirs else "")
        choice = choices_of(cls).get(own.name)
        kind = "a block" if choice or is_dataclass(hints[own.name]) else f"`{type_of(hints[own.name])}`"
        rows.append(f"| {name} | {kind} | {default(own)} | {' '.join(texts.get(own.name, '').split())} |")
    return "\n".join(rows)


def docstrings(cls: type) -> dict[str, str]:
    """The strings that stand under the fields of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if not is_dataclass(each):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def type_of(hint: Any) -> str:
    """A type as one would say it in YAML: `float | null`, `raw | signed`, `list of str`."""
    args = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(type_of, args))
    if get_origin(hint) is Literal:
        return " | ".join(map(str, args))
    if get_origin(hint) in (list, tuple):
        return f"list of {type_of(args[0])}"
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return f"mapping of {type_of(args[0])} to {type_of(args[1])}"
    return "null" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint)).removeprefix("typing.")


def default(own: Field[Any]) -> str:
    if own.default is MISSING and own.default_factory is MISSING:
        return "**required**"
    value = own.default if own.default_factory is MISSING else own.default_factory()
    if is_dataclass(value):
        return ""
    return "" if value in (None, "", [], {}, ()) else f"`{value}`"
