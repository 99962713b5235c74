"""The tab Map: the prompts and centroids that the dispatcher `embedding` sees, and one's own among them."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr
import torch
from torch import Tensor

from dispatch.embedding import EmbeddingDispatcher, read_prompts
from experts.outside.errors import UserError
from experts.text_to_lora.encoder import encode
from selfadapt.page.answers import read
from selfadapt.page.ask import EXAMPLES, status_line
from selfadapt.page.drawing import Dots, figure, scatter
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import color_of, note
from selfadapt.serving.served import Served

INTRODUCTION = """\
How does pass one know? A sentence encoder turns every prompt into a **point**, and prompts that mean alike lie close together.
Small dots are prompts that an expert was trained on, a star is the middle of them. Your prompts go to the nearest star, or to
the base where none is near.
"""


def map_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        prompts = gr.Textbox(
            "\n".join(EXAMPLES), label="Prompts to find on the map, one a line", lines=3, max_lines=8, scale=5
        )
        go = gr.Button("Draw the map", variant="primary", scale=1, min_width=140, elem_id="map-go")
    status = status_line("map-status")
    drawn = gr.HTML(elem_id="map-picture")

    def look(asked: str) -> Iterator[Shown]:
        yield {status: note("Looking …")}
        yield {
            status: note(" "),
            drawn: _drawn(served, [read(line) for line in asked.splitlines() if line.strip()][:8]),
        }

    go.click(said(status, look), [prompts], [status, drawn], show_progress="hidden", api_name="map")


def plane(vectors: Tensor) -> tuple[Tensor, float]:
    """The two directions [d, 2] in which vectors [n, d] differ the most, and what share of their spread that is."""
    _, s, directions = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    return directions[:2].T, (s[:2].square().sum() / s.square().sum()).item()


def _drawn(served: Served, prompts: list[str]) -> str:
    library = served.library
    if not library.names:
        raise UserError("the library is empty: there are no experts to draw a map of")
    dispatcher = served.dispatcher
    if not isinstance(dispatcher, EmbeddingDispatcher):
        dispatcher = EmbeddingDispatcher.from_library(library)
    stored = {name: read_prompts(library.path(name))[1] for name in dispatcher.names}
    stored = {name: own for name, own in stored.items() if len(own)}
    everything = torch.cat([*stored.values(), dispatcher.centroids])  # [n, d]
    if len(everything) < 3:
        raise UserError("the library keeps no embeddings of training prompts, and two experts make no map")
    directions, share = plane(everything)
    names = served.names
    groups = [Dots(name, (own @ directions).numpy(), color_of(name, names)) for name, own in stored.items()]
    for k, name in enumerate(dispatcher.names):
        center = (dispatcher.centroids[k : k + 1] @ directions).numpy()
        groups.append(Dots(name, center, color_of(name, names), large=True))
    if prompts:
        own = encode(prompts, dispatcher.encoder) @ directions
        groups.append(Dots("yours", own.numpy(), "var(--body-text-color)", large=True, titles=prompts))
    alt = (
        f"Map of {sum(map(len, stored.values()))} training prompts of {len(dispatcher.names)} experts, the centroid of each, "
        f"and {len(prompts)} prompts of yours."
    )
    caption = (
        f"{alt} Two of {everything.shape[1]} directions, with {share:.0%} of the spread: what lies close together here may "
        "be apart in another."
    )
    return f'<section class="sa-card">{figure(scatter(groups, alt), caption)}</section>'
