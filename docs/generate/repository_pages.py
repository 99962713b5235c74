"""README and what lies beside it as pages of the site: README is its home.

On the repository's page these files link to `docs/…`, and pages in `docs/` to `../README.md`; here both are links of
the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=in_the_site(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return in_the_site(markdown)


def in_the_site(text: str) -> str:
    """The text of a page with its links to README, its neighbours, and `docs/` as the site has them."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    for name, page in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}(#[^)]*)?\)", rf"]({page}\1)", text)
    return text
