"""Notebooks as pages of the site: text, code, and the outputs that were committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def on_files(files: Files, config: Any) -> Files:
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = as_page(json.loads(notebook.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
    return files


def as_page(notebook: dict[str, Any]) -> str:
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [output(each) for each in cell.get("outputs", [])]
    return "\n\n".join(parts)


def output(each: dict[str, Any]) -> str:
    """A picture, or the text that a cell printed."""
    if picture := each.get("data", {}).get("image/png"):
        return f"![what the cell draws](data:image/png;base64,{''.join(picture.split())})"
    text = "".join(each.get("text") or each["data"]["text/plain"])
    return f"```text\n{text.rstrip()}\n```"
