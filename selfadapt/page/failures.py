"""Shows what goes wrong as a line on the page, not as a blank page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from experts.engine.continuous import QueueFull, Stopped
from experts.outside.errors import UserError
from selfadapt.page.looks import note

logger = logging.getLogger(__name__)

Shown = dict[Any, Any]
"""Component → what it shows from now on; the others stay as they are."""


def said(status: gr.HTML, handler: Callable[..., Iterator[Shown]]) -> Callable[..., Iterator[Shown]]:
    """`handler`, with its failures shown in `status`. What was shown before stays."""

    def call(*asked: Any) -> Iterator[Shown]:
        try:
            yield from handler(*asked)
        except (UserError, QueueFull, Stopped) as error:
            yield {status: note(str(error), "error")}
        except Exception as error:
            logger.exception("the page could not answer")
            yield {status: note(f"the server failed: {type(error).__name__}; its log says more", "error")}

    return call
