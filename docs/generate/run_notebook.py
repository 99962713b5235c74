"""Runs the code cells of notebooks in a plain Python and writes what came out into them.

python docs/generate/run_notebook.py docs/notebooks/two_passes.ipynb
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt


def executed(notebook: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notebook with the outputs of its cells, and the names that these left."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
            cell = cell | {"outputs": [*printed(said.getvalue()), *drawn()]}
        cells.append(cell)
    return notebook | {"cells": cells}, names


def printed(text: str) -> list[dict[str, Any]]:
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []


def drawn() -> list[dict[str, Any]]:
    """The figures that are open, which are closed."""
    outputs = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=80, bbox_inches="tight")
        picture = base64.b64encode(file.getvalue()).decode()
        outputs.append({"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}})
    plt.close("all")
    return outputs


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        made, _ = executed(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
