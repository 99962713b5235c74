"""The tab Library: each expert's card, and how its training went."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gradio as gr

from experts.library import LoraFigures
from experts.outside.errors import UserError
from experts.training.log import Log
from selfadapt.page.controls import status_line
from selfadapt.page.curve import training_curve
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import note
from selfadapt.serving.served import Served

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
PICTURE = re.compile(r"^!\[.*\]\(.*\)\n", re.MULTILINE)
INTRODUCTION = (
    "Who is in the library, what each is for, how well it did on problems that it had not seen, and how it learned."
)


def cards_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    names = served.names
    one = gr.Radio(names, value=names[0] if names else None, label="Expert", elem_id="cards-one")
    status = status_line("cards-status")
    curve = gr.HTML(elem_id="cards-curve")
    card = gr.Markdown(elem_id="cards-card")

    def show(name: str | None) -> Iterator[Shown]:
        if not name:
            raise UserError("the library is empty: there are no cards")
        library = served.library
        text = PICTURE.sub("", FRONT_MATTER.sub("", library.card(name)))
        figures = library.figures(name)
        kind = "a LoRA" if isinstance(figures, LoraFigures) else "an expert"
        size = f"{name} is {kind} of {figures.parameters:,} numbers in {len(figures.matrices)} matrices."
        drawn = training_curve(Log(library.path(name) / "training_log.jsonl").entries(), name)
        yield {status: note(size), curve: f'<section class="sa-card">{drawn}</section>' if drawn else "", card: text}

    action = said(status, show)
    one.input(action, [one], [status, curve, card], show_progress="hidden", api_name="card")
    if names:
        for component, value in next(action(names[0])).items():
            component.value = value
