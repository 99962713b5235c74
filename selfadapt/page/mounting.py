"""The page as an application for a server, by itself or beside the API."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from selfadapt.page.application import make_page
from selfadapt.page.looks import CSS, SCRIPT, theme
from selfadapt.serving.running import Application
from selfadapt.serving.served import Served

BESIDE = "/page"
"""Where the page is beside the API."""


def with_page(runs: Path, served: Served, beside: ASGIApp | None = None) -> Application:
    """An application with the page at /, or at `BESIDE` if another application is at /.

    Args:
        runs: the folder whose trainings are shown.
    """
    app = FastAPI(title="selfadapt", docs_url=None, redoc_url=None, openapi_url=None)
    page = make_page(served, runs).queue(default_concurrency_limit=8, max_size=64)
    gr.mount_gradio_app(
        app,
        page,
        "/" if beside is None else BESIDE,
        theme=theme(),
        css=CSS,
        js=SCRIPT,
        footer_links=["settings"],
        max_file_size="1mb",  # nothing is uploaded
        ssr_mode=False,
        show_error=True,
    )
    if beside is not None:
        app.mount("/", beside)
    return Application(app, lambda: page.app.stop_event.set())  # every open page holds a connection
