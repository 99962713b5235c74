"""The page: what stands above its tabs, and the tabs."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from selfadapt.page.ask import ask_tab
from selfadapt.page.looks import chip
from selfadapt.serving.served import Served

ABOUT = """\
<details><summary>What is an expert, and what are singular values?</summary>
<p>A language model is a stack of layers, and each layer is a few large tables of numbers (matrices). Any such table can be
taken apart into <b>channels</b>: what a channel listens for, what it says when it hears that, and how <b>loud</b> it is. The
loudnesses are called singular values.</p>
<p>An expert leaves all channels as they are, and only turns their volume knobs: this one 6 % up, that one 3 % down. That is
all: a few thousand numbers, where the model has a hundred million. Which knobs help was found by trial and error with a
reward (reinforcement learning): the model tried answers to problems of one kind, and right ones were rewarded.</p>
<p>As an expert is only a set of knobs, two of them can be mixed like sounds at a mixing desk; all knobs in the middle is the
base, exactly.</p></details>
"""


def make_page(served: Served, runs: Path) -> gr.Blocks:
    """The page of what is served, and of the trainings in a folder."""
    with gr.Blocks(title="selfadapt: a model that adapts itself", analytics_enabled=False) as page:
        gr.HTML(_head(served))
        with gr.Tabs():
            with gr.Tab("Ask", id="ask"):
                ask_tab(served)
    return page


def _head(served: Served) -> str:
    experts = " ".join(chip(name, served.names) for name in served.names) or "none yet"
    return (
        '<header class="sa-head"><h1>A model that adapts itself to your prompt</h1>'
        f"<p class='sa-lead'>One small language model, <b>{escape(served.base)}</b>, and its experts: {experts}. For each "
        f"prompt the fitting expert is switched on, just for that answer.</p>{ABOUT}</header>"
    )
