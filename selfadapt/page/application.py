"""The page: its header and its tabs."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from dispatch.text_to_lora import network_path
from selfadapt.page.ask import ask_tab
from selfadapt.page.cards import cards_tab
from selfadapt.page.inside import inside_tab
from selfadapt.page.looks import chip
from selfadapt.page.mixing import mixing_tab
from selfadapt.page.prompt_map import map_tab
from selfadapt.page.sentence import sentence_tab
from selfadapt.page.several import several_tab
from selfadapt.page.trainings import trainings_tab
from selfadapt.serving.served import Served

TABS = {
    "Ask": ask_tab,
    "Mix": mixing_tab,
    "Several at once": several_tab,
    "Look inside": inside_tab,
    "Map": map_tab,
    "Library": cards_tab,
}
TRAINING = "Training"
ABOUT = """\
<details><summary>What is an expert, and what are singular values?</summary>
<p>A language model is a stack of layers, and each layer is a few large tables of numbers (matrices). Any such table
can be taken apart into <b>channels</b>: what a channel listens for, what it says when it hears that, and how
<b>loud</b> it is. The loudnesses are called singular values.</p>
<p>An expert leaves all channels as they are, and only turns their volume knobs: this one 6 % up, that one 3 % down.
That is all: a few thousand numbers, where the model has a hundred million. Which knobs help was found by trial and
error with a reward (reinforcement learning): the model tried answers to problems of one kind, and right ones were
rewarded.</p>
<p>As an expert is only a set of knobs, two of them can be mixed like sounds at a mixing desk; with all knobs in the
middle, it is exactly the base.</p></details>
"""


def make_page(served: Served, runs: Path) -> gr.Blocks:
    """The page for what is served and for the trainings in a folder."""
    with gr.Blocks(title="selfadapt: a model that adapts itself", analytics_enabled=False) as page:
        with gr.Row(elem_classes="sa-top"):
            gr.HTML(_head(served), padding=False)
            look = gr.Button("Light or dark", size="sm", elem_id="look", min_width=120, scale=0)
        look.click(None, None, None, js="() => document.body.classList.toggle('dark')", api_visibility="private")
        with gr.Tabs() as tabs:
            for title, tab in TABS.items():
                with gr.Tab(title):
                    tab(served)
            with gr.Tab(TRAINING):
                timer = trainings_tab(runs)
            if network_path(served.library).is_dir():
                with gr.Tab("A sentence"):
                    sentence_tab(served)
        tabs.select(_watching, None, timer, show_progress="hidden", api_visibility="private")
    return page


def _watching(chosen: gr.SelectData) -> gr.Timer:
    return gr.Timer(active=chosen.value == TRAINING)


def _head(served: Served) -> str:
    experts = " ".join(chip(name, served.names) for name in served.names) or "none yet"
    return (
        '<header class="sa-head"><h1>A model that adapts itself to your prompt</h1>'
        f"<p class='sa-lead'>One small language model, <b>{escape(served.base)}</b>, and its experts: {experts}. For "
        f"each prompt, the expert that fits is switched on, just for that answer.</p>{ABOUT}</header>"
    )
