"""The tab A sentence: a network of the library writes an adapter from a description, and a prompt is answered."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import gradio as gr

from dispatch import T2LDispatcher
from selfadapt.page.answers import read
from selfadapt.page.controls import length_slider, status_line
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import note
from selfadapt.page.side_by_side import pair, side_by_side
from selfadapt.serving.served import Served

INTRODUCTION = """\
Nobody trains anything here. A **network** reads one sentence that describes a task and writes an adapter for it at
once; then a prompt is answered with that adapter switched on. The network that comes with the built-in base knows the
four kinds of problems of its experts, and writes next to nothing for anything else.
"""


def sentence_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    sentence = gr.Textbox("Boxes with the same number of things in each", label="The task, in one sentence")
    prompt = gr.Textbox(
        "There are 6 boxes with 7 eggs in each. How many eggs are there in all?", label="A prompt of that task"
    )
    tokens = length_slider()
    go = gr.Button("Write the adapter, and answer", variant="primary", elem_id="sentence-go")
    status = status_line("sentence-status")
    written = gr.HTML(elem_id="sentence-answers")

    @cache
    def writer() -> T2LDispatcher:
        return T2LDispatcher.from_library(served.library, served.engine)

    def write(described: str, asked: str, new_tokens: int) -> Iterator[Shown]:
        task, text = read(described), read(asked)
        yield {status: note("The network is writing …")}
        mixture = writer()([task])  # while it exists, the written adapter is kept
        yield {status: note("Answering …")}
        for own, base in side_by_side(served, text, mixture, int(new_tokens)):
            yield {written: pair(served.names, mixture[0], own, base)}
        yield {status: note("Done.")}

    go.click(
        said(status, write),
        [sentence, prompt, tokens],
        [status, written],
        show_progress="hidden",
        api_name="sentence",
    )
