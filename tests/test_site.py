"""What the site is made of: every page in its navigation, every verb, field and name in its reference."""

from __future__ import annotations

import json
import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from experts.domains import KINDS
from selfadapt.cli import GROUPS, VERBS

ROOT = Path(__file__).parent.parent
GENERATED = {"repository_pages", "notebook_pages", "command_line", "recipe_fields", "python_names"}


class _Plain(yaml.SafeLoader):
    """mkdocs.yml without what its tags make."""


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Plain)


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for each in (nav.values() if isinstance(nav, dict) else nav) for page in pages(each)]


def generator(name: str) -> dict[str, Any]:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    return runpy.run_path(str(ROOT / "docs" / "generate" / f"{name}.py"))


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages(SITE["nav"])
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    generated = {page for page in listed if page.startswith("reference/")} | {
        "index.md",
        "changelog.md",
        "contributing.md",
    }
    assert sorted(listed) == sorted(written | notebooks | generated)


def test_every_hook_is_there() -> None:
    assert {Path(hook).stem for hook in SITE["hooks"]} == GENERATED
    assert all((ROOT / hook).is_file() for hook in SITE["hooks"])


def test_nothing_is_fetched_by_a_reader() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["strict"] is True


def test_the_command_line_is_there_verb_by_verb() -> None:
    page = generator("command_line")["page"]()
    for verb in VERBS.keys() - GROUPS.keys() | {f"{group} {verb}" for group in GROUPS for verb in GROUPS[group]}:
        assert f"\n## {verb}\n" in page
    assert "| `--temperature` | `FLOAT` | what logits are divided by" in page


def test_recipe_fields_are_there_with_type_default_and_meaning() -> None:
    page = generator("recipe_fields")["page"]()
    assert "| `kl` (`beta`) | `float` | `0.0` | λ, the coefficient of KL(π_z ‖ base). |" in page
    assert "| `domain` | a block | **required** |" in page
    for kind in KINDS:
        assert f"`{kind}`" in page


@pytest.mark.parametrize(("name", "columns"), [("command_line", 3), ("recipe_fields", 4)])
def test_a_table_has_its_columns_in_every_row(name: str, columns: int) -> None:
    rows = [line for line in generator(name)["page"]().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    # A bar inside code is no border.
    assert {re.sub("`[^`]*`", "", row).count("|") for row in rows} == {columns + 1}


@pytest.mark.parametrize("package", ["selfadapt", "dispatch", "experts"])
def test_every_exported_name_is_there(package: str) -> None:
    page = generator("python_names")["page"](package)
    for name in import_module(package).__all__:
        assert name.startswith("__") or f"::: {package}.{name}\n" in page


def test_links_of_the_repository_are_links_of_the_site() -> None:
    in_the_site = generator("repository_pages")["in_the_site"]
    assert in_the_site("[a](docs/results.md#b), [c](CONTRIBUTING.md)") == "[a](results.md#b), [c](contributing.md)"
    assert (
        in_the_site("[a](../README.md#install), [b](https://x/docs/a.md)")
        == "[a](index.md#install), [b](https://x/docs/a.md)"
    )


def test_a_notebook_becomes_a_page() -> None:
    (path,) = (ROOT / "docs" / "notebooks").glob("*.ipynb")
    page = generator("notebook_pages")["as_page"](json.loads(path.read_text(encoding="utf-8")))
    assert page.startswith("# Two passes\n")
    assert "```python\n" in page
