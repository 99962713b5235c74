"""The tab Mix: one slider per expert, and the answer under that mixture beside the base's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradio as gr

from experts.mixture import Mixture
from selfadapt.page.answers import read
from selfadapt.page.controls import FIRST, length_slider, status_line
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import note
from selfadapt.page.side_by_side import pair, side_by_side
from selfadapt.serving.served import Served

MOST = 12
"""The most sliders."""
INTRODUCTION = """\
Be the dispatcher yourself. Every slider is one expert: **0** leaves it out, **1** is the expert as it was trained,
and above that it is exaggerated. All at 0 is the base. Move one, and a new answer is written.
"""


def mixing_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    names = served.names[:MOST]
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(FIRST, label="Your prompt", max_lines=6, elem_id="mix-prompt")
            tokens = length_slider()
        with gr.Column(scale=3):
            sliders = [
                gr.Slider(0, 2, 0, step=0.05, label=f"Weight of {name}", elem_id=f"mix-{name}") for name in names
            ]
    with gr.Row():
        off = gr.Button("All off: the base", size="sm", min_width=130)
        alone = [gr.Button(f"Only {name}", size="sm", min_width=110) for name in names]
    if len(served.names) > MOST:
        gr.Markdown(f"There are sliders for the first {MOST} of {len(served.names)} experts.")
    status = status_line("mix-status")
    written = gr.HTML(elem_id="mix-answers")

    def mix(asked: str, new_tokens: int, *weights: float) -> Iterator[Shown]:
        text = read(asked)
        mixture = Mixture.of({name: float(weight) for name, weight in zip(names, weights, strict=True) if weight})
        yield {status: note("Answering …")}
        for own, base in side_by_side(served, text, mixture, int(new_tokens)):
            yield {written: pair(served.names, mixture[0], own, base)}
        total = round(sum(mixture[0].values()), 2)
        rest = f", {1 - total:.2f} to the base" if 0 < total < 1 else ""
        loud = " More than one whole expert is on: louder than anything that was trained." if total > 1 else ""
        yield {status: note(f"Done. {total:.2f} of the mixture belongs to experts{rest}.{loud}")}

    answer = {"fn": said(status, mix), "inputs": [prompt, tokens, *sliders], "outputs": [status, written]}
    # If a slider moves while an answer is written, another is written when it rests.
    gr.on(
        [slider.input for slider in sliders],
        **answer,
        trigger_mode="always_last",
        show_progress="hidden",
        api_name="mix",
    )
    gr.on([prompt.submit], **answer, show_progress="hidden", api_visibility="private")
    for button, chosen in [(off, None), *zip(alone, names, strict=True)]:
        button.click(partial(_only, names, chosen), None, sliders, api_visibility="private").then(
            **answer, show_progress="hidden", api_visibility="private"
        )


def _only(names: list[str], chosen: str | None) -> list[float] | float:
    """The sliders' values for one expert alone, or for none."""
    values = [float(name == chosen) for name in names]
    return values if len(values) > 1 else values[0]
