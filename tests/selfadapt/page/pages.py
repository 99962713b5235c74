"""A page that is served in a thread, and what one reads on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts import Mixture
from selfadapt.serving.running import Server
from selfadapt.serving.served import Served
from tests.selfadapt.serving.conftest import in_a_thread

if TYPE_CHECKING:
    from gradio_client import Client


@dataclass
class Page:
    """A page that is served, and what it is made of."""

    served: Served
    runs: Path
    url: str

    def call(self, name: str, *asked: Any) -> list[str]:
        """What a control shows in the end, as HTML."""
        job = self.client.submit(*asked, api_name=f"/{name}")
        job.result()
        shown: list[str] = []
        for each in job.outputs():
            shown = shown or ["" for _ in each]
            shown = [before if isinstance(now, dict) else now for before, now in zip(shown, each, strict=True)]
        return shown

    @cached_property
    def client(self) -> Client:
        from gradio_client import Client

        return Client(self.url, verbose=False)

    def answer(self, prompt: str, weights: dict[str, float], new_tokens: int = 8) -> str:
        """What the engine answers by itself."""
        (text,) = self.served.engine.generate([prompt], max_new_tokens=new_tokens, mixture=Mixture.of(weights))
        return text


def texts(html: str) -> list[str]:
    """The answers in what a tab shows."""
    return [unescape(found) for found in re.findall(r'<div class="sa-text[^>]*>(.*?)</div>', html, re.DOTALL)]


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


@contextmanager
def open_page(served: Served, runs: Path, beside: Any = None) -> Iterator[Page]:
    from selfadapt.page.mounting import with_page

    app, ending = with_page(runs, served, beside)
    server = Server(app, served.batch, host="127.0.0.1", port=0, grace=1.0, ending=ending)
    with in_a_thread(server) as url:
        yield Page(served, runs, url)
