"""The reference of the Python API: every name that a package exports, in the package's own order of rooms."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGES = ("selfadapt", "dispatch", "experts")


def on_files(files: Files, config: Any) -> Files:
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=page(package)))
    return files


def page(package: str) -> str:
    parts = []
    for file in sorted((ROOT / package).rglob("__init__.py"), key=lambda file: (len(file.parts), file)):
        if names := exported(file):
            room = ".".join(file.parent.relative_to(ROOT).parts)
            about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            parts.append(f"{'#' if room == package else '##'} {room}\n\n{about}\n")
            parts += [f"::: {room}.{name}\n" for name in names]
    return "\n".join(parts)


def exported(file: Path) -> list[str]:
    """What stands in a package's `__all__`, without its version."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    return []
