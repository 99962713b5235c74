"""Whatever is typed, and whatever a recipe says: a result or one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.cli import VERBS, main
from selfadapt.grid.experiment import read_experiment
from selfadapt.grid.results import read_results
from selfadapt.recipes import read_recipe

EACH = settings(
    max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# demo and t2l have no small base, play and serve do not come back; adapt, export and transfer load one, and are tried
# with what they refuse before.
QUICK = sorted({*VERBS} - {"demo", "t2l", "eval", "play", "serve"})
OPTIONS = ["model", "library", "output", "dispatch", "max-new-tokens", "json", "format", "rank", "to", "seed", "only"]
OPTIONS += ["per", "population", "evaluate", "calibrate", "name", "texts", "engine", "quick", "resume", "help", "dtype"]
OPTIONS += ["cells"]
ODD = [
    "",
    "-",
    "--",
    "-1",
    "0",
    "1e9",
    "nan",
    "none",
    ".",
    "/",
    "missing",
    "missing.json",
    "é\u2028",
    "list",
    "show",
    "add",
    "remove",
]


def say(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv = patch.object(sys, "argv", ["selfadapt", *args])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, out.getvalue(), err.getvalue()


@settings(EACH, max_examples=40)  # some of them load a base
@given(data=st.data())
def test_any_command_line_gives_a_result_or_one_line(
    data: st.DataObject, tiny_folder: Path, library: ExpertLibrary, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    there = [str(tiny_folder), str(library.folder), str(tmp_path / "file"), str(tmp_path), "a", "b"]
    word = st.sampled_from([*ODD, *there]) | st.text(max_size=8)
    option = st.sampled_from(OPTIONS).map(lambda name: f"--{name}")
    verb = data.draw(st.sampled_from(QUICK))
    args = data.draw(st.lists(word | option | option, max_size=6))
    if verb in ("generate", "dispatch"):  # never the base that takes long to load
        args += ["--model", "nowhere"]
    if verb == "experts":
        args = [arg for arg in args if arg not in ("add", "remove")]
    code, out, err = say(verb, *args)
    assert code in (0, 1, 2), err
    if code:
        assert err.startswith("error: ")
        assert len(err.strip().split("\n")) == 1
        assert out == ""
    elif "--json" in args and "--help" not in args:
        json.loads(out)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates()
DOCUMENTS = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(SCALARS, each, max_size=3), max_leaves=8
)


@EACH
@given(data=st.data())
def test_any_recipe_or_experiment_is_read_or_refused(data: st.DataObject, recipe: Path, tmp_path: Path) -> None:
    document: Any = yaml.safe_load(recipe.read_text())
    for _ in range(data.draw(st.integers(1, 3))):  # something of it is something else
        block = document
        if (
            isinstance(inner := block.get(data.draw(st.sampled_from([*block, "x"]))), dict)
            and inner
            and data.draw(st.booleans())
        ):
            block = inner
        block[data.draw(st.sampled_from(sorted(block, key=str)) | SCALARS)] = data.draw(DOCUMENTS)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(document))
    with contextlib.suppress(UserError):
        read_recipe(path)
    name, value = (
        data.draw(st.sampled_from(["domains", "methods", "unseen", "seeds", "recipe", "quick"])),
        data.draw(DOCUMENTS),
    )
    path.write_text(yaml.safe_dump({"domains": {"own": document}, "methods": {"svf": {}}, name: value}))
    with contextlib.suppress(UserError):
        read_experiment(path, quick=data.draw(st.booleans()))


@EACH
@given(content=st.binary(max_size=60) | DOCUMENTS.map(lambda each: yaml.safe_dump(each).encode()))
def test_any_file_is_a_recipe_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    for read in (read_recipe, read_experiment):
        with pytest.raises(UserError):
            read(path)


@EACH
@given(data=st.data())
def test_any_results_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    from dataclasses import asdict

    from selfadapt.grid.results import Line

    line = asdict(Line("svf", "sums", 0.1, 0, "sums", "x", "base", scores="10", right=1, n=2))
    changed = data.draw(st.sampled_from(sorted(line)))
    value = data.draw(SCALARS.filter(lambda each: not hasattr(each, "year")) | st.lists(st.integers(), max_size=2))
    text = json.dumps(line) + "\n" + json.dumps({**line, changed: value})
    path = tmp_path / "results.jsonl"
    path.write_text(text[: data.draw(st.integers(0, len(text)))])
    with contextlib.suppress(UserError):
        assert all(line.n == len(line.scores) for line in read_results(path))
