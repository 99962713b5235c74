"""The files and commands of a tutorial page, in their order: its fenced blocks.

A block whose first line is a comment with a file's name is that file; `sh` blocks are commands, and any other `python`
block is a program. `python tests/tutorial.py docs/tutorial.md` prints all of it as one script for bash.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    language: str
    text: str
    file: str | None
    """What it is the content of."""


def blocks(page: Path) -> Iterator[Block]:
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        named = re.match(r"# (\S+\.(?:py|ya?ml|csv))\n", text)
        yield Block(language, text, named and named[1])


def script(page: Path) -> str:
    parts = ["set -euxo pipefail"]
    for block in blocks(page):
        if block.file:
            parts += [f"mkdir -p $(dirname {block.file})", f"cat > {block.file} <<'END'\n{block.text}END"]
        elif block.language == "sh":
            parts.append(block.text)
        else:
            assert block.language == "python", f"nobody runs a block of {block.language}"
            parts.append(f"python - <<'END'\n{block.text}END")
    return "\n".join(parts)


if __name__ == "__main__":
    print(script(Path(sys.argv[1])))
