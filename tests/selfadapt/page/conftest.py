"""The page of the tiny base with its library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from experts import ExpertLibrary
from experts.engine import NativeEngine
from experts.engine.continuous import ContinuousBatch
from selfadapt.serving.served import Served
from tests.selfadapt.page.pages import Page, open_page


@pytest.fixture
def served(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> Callable[[str], Served]:
    """The tiny base and its library, under a dispatcher."""

    def serve(dispatch: str) -> Served:
        tiny_model.generation_config.eos_token_id = [7, 40, 99]
        engine = NativeEngine(library.load(tiny_model), tiny_tokenizer)
        opened = ExpertLibrary.open(library.folder)
        return Served(engine, opened, dispatch, "tiny", ContinuousBatch(engine, rows=8, waiting=64))

    return serve


@pytest.fixture
def start(served: Callable[[str], Served], tmp_path: Path) -> Iterator[Callable[..., Page]]:
    with ExitStack() as pages:

        def start(dispatch: str = "b") -> Page:
            return pages.enter_context(open_page(served(dispatch), tmp_path / "runs"))

        yield start


@pytest.fixture
def page(start: Callable[..., Page]) -> Page:
    return start()
