"""The reference of the command line: every verb and option, from the parsers themselves."""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tyro
from mkdocs.structure.files import File, Files

from selfadapt.cli import DESCRIPTION, GROUPS, VERBS

INTRODUCTION = f"""# Command line

{DESCRIPTION}

`selfadapt VERB --help` says the same as this page. Answers and JSON go to stdout, everything else to stderr. The exit
code is 0 when the work is done, 1 when it failed, and 2 when the command line made no sense.
"""


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "reference/command_line.md", content=page()))
    return files


def page() -> str:
    return "\n".join([INTRODUCTION, *(section(name, verb) for name, verb in verbs())])


def verbs() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every verb that does something, under the name that one types."""
    for name, verb in VERBS.items():
        if name not in GROUPS:
            yield name, verb
        for own, sub in GROUPS.get(name, {}).items():
            yield f"{name} {own}", sub


def section(name: str, verb: Callable[..., Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro names nothing to use instead
        actions = [each for each in tyro.extras.get_parser(verb)._actions if each.dest != "help"]
    given = [each for each in actions if not each.option_strings]
    usage = " ".join(["selfadapt", name, *(each.dest.upper() for each in given), "[OPTIONS]"])
    about = inspect.getdoc(verb) or ""
    lines = [f"## {name}", "", f"    {usage}", "", about.split("\n\nArgs:")[0], "", "| | value | |", "|---|---|---|"]
    return "\n".join([*lines, *map(row, actions), ""])


def row(action: argparse.Action) -> str:
    flag = action.nargs == 0
    names = action.option_strings[: 1 if flag else None] or [action.dest.upper()]
    value = "" if flag else f"`{' '.join(str(action.metavar).split())}`"
    return f"| {', '.join(f'`{name}`' for name in names)} | {cell(value)} | {cell(action.help or '')} |"


def cell(text: str) -> str:
    text = re.sub(r" ?\(default: (None|False|)\)", "", " ".join(text.split()))
    return text.replace("{None}|", "").replace("<", "&lt;")
