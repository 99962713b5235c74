"""`selfadapt play`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from selfadapt.verbs.loading import FromOptions, Loading


def play(
    model: str | None = None,
    library: Path | None = None,
    dispatch: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    runs: Path = Path("runs"),
    rows: int = 32,
    queue: int = 256,
    base: FromOptions = Loading(),
) -> None:
    """Open a page to play with: ask, see who answers and why, mix the experts, and look inside them.

    Args:
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        dispatch: who chooses the experts; by default "embedding".
        host: the address to listen on; 0.0.0.0 lets other machines in.
        port: the port to listen on.
        runs: the folder whose trainings are shown, including those that are still running.
        rows: answers that are written at once; more need more memory.
        queue: answers that may wait for a place.
        base: how the base is loaded.
    """
    from experts.outside.errors import check_whole

    check_whole("--port", port, least=0, most=65535)
    check_whole("--rows", rows)
    check_whole("--queue", queue)
    around = page_with(runs)
    from selfadapt.serving.running import run_page

    run_page(model, library, dispatch, host=host, port=port, rows=rows, queue=queue, page=around, **base.options())


def page_with(runs: Path) -> Callable[..., Any]:
    """The function that makes the page for what is served, by itself or beside another application.

    Raises:
        UserError: if what it needs is not installed.
    """
    from experts.outside.errors import not_installed

    try:
        from selfadapt.page.mounting import with_page
    except ImportError as error:
        raise not_installed("the page", str(error.name), "page") from error
    return partial(with_page, runs)
