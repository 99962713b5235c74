"""The tab Ask: a prompt, pass one with every expert considered, and pass two beside the base's answer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gradio as gr

from selfadapt.page.answers import read
from selfadapt.page.controls import EXAMPLES, FIRST, length_slider, status_line
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import note
from selfadapt.page.pass_one import consider, verdict
from selfadapt.page.side_by_side import pair, side_by_side
from selfadapt.serving.served import Served

INTRODUCTION = """\
Ask something. **Pass one** reads your prompt and decides which expert should answer, if any. **Pass two** answers
with that expert switched on, here beside the plain base, so that you see what the expert changes.
"""


def ask_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=3):
            prompt = gr.Textbox(FIRST, label="Your prompt", max_lines=6, elem_id="ask-prompt")
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
        with gr.Column(scale=2):
            gr.Examples(
                [[each] for each in EXAMPLES], prompt, label="Or one of these", example_labels=[*EXAMPLES.values()]
            )
            tokens = length_slider()
    status = status_line("ask-status")
    pass_one = gr.HTML(elem_id="ask-pass-one")
    written = gr.HTML(elem_id="ask-answers")

    def ask(asked: str, new_tokens: int) -> Iterator[Shown]:
        text, start = read(asked), time.perf_counter()
        yield {status: note("Pass one: who should answer?"), pass_one: "", written: ""}
        mixture, considered = consider(served, [text])
        seconds = time.perf_counter() - start
        yield {status: note("Pass two: answering …"), pass_one: verdict(served, mixture, considered, seconds)}
        for own, base in side_by_side(served, text, mixture, int(new_tokens)):
            yield {written: pair(served.names, mixture[0], own, base)}
        yield {status: note(f"Done. {'An expert' if mixture[0] else 'The base'} answered.")}

    gr.on(
        [go.click, prompt.submit],
        said(status, ask),
        [prompt, tokens],
        [status, pass_one, written],
        show_progress="hidden",
        api_name="ask",
    )
