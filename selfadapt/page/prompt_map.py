"""The tab Map: the prompts and centroids that the dispatcher `embedding` sees, and the user's prompts among them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import gradio as gr
import torch
from torch import Tensor

from dispatch.embedding import EmbeddingDispatcher, read_prompts
from experts.outside.errors import UserError
from experts.text_to_lora.encoder import encode
from selfadapt.page.answers import read
from selfadapt.page.controls import EXAMPLES, status_line
from selfadapt.page.drawing import Dots, figure, scatter
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import chips, color_of, note
from selfadapt.serving.served import Served

INTRODUCTION = """\
How does pass one know? A sentence encoder turns every prompt into a **point**, and prompts with similar meanings lie
close together. Small dots are prompts that an expert was trained on, and a star marks their middle. Your prompts are
the numbered diamonds; each goes to the nearest star, or to the base where none is near.
"""


def map_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        prompts = gr.Textbox(
            "\n".join(EXAMPLES), label="Prompts to find on the map, one per line", lines=3, max_lines=8, scale=5
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


def plane(vectors: Tensor) -> Tensor:
    """The two directions [d, 2] in which vectors [n, d] differ the most."""
    return torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:2].T


def _drawn(served: Served, prompts: list[str]) -> str:
    library, names = served.library, served.names
    if not library.names:
        raise UserError("the library is empty: there are no experts to draw a map of")
    dispatcher = served.dispatcher
    if not isinstance(dispatcher, EmbeddingDispatcher):
        dispatcher = EmbeddingDispatcher.from_library(library)
    stored = {name: read_prompts(library.path(name))[1] for name in dispatcher.names}
    stored = {name: own for name, own in stored.items() if len(own)}
    centroids = dispatcher.centroids  # [K, d]
    everything = torch.cat([*stored.values(), centroids])
    if len(everything) < 3:
        raise UserError(
            "the library has too little for a map, which needs three experts, or embeddings of training prompts"
        )
    directions = plane(centroids if len(centroids) > 2 else everything)
    dots = [Dots((own @ directions).numpy(), color_of(name, names), [name] * len(own)) for name, own in stored.items()]
    # A centroid has length 1, but the mean of its prompts is shorter; the picture shows the mean.
    lengths = [(stored[name] @ centroids[k]).mean() if name in stored else 1 for k, name in enumerate(dispatcher.names)]
    middles = torch.stack([length * center for length, center in zip(lengths, centroids, strict=True)])
    for name, center in zip(dispatcher.names, middles @ directions, strict=True):
        dots.append(Dots(center[None].numpy(), color_of(name, names), [name], large="star"))
    listed = ""
    if prompts:
        own, numbers = encode(prompts, dispatcher.encoder) @ directions, [str(n + 1) for n in range(len(prompts))]
        dots.append(Dots(own.numpy(), "var(--body-text-color)", numbers, large="diamond"))
        mixture = dispatcher(prompts)
        rows = "".join(f"<li>{escape(text)} {chips(mixture[n], names)}</li>" for n, text in enumerate(prompts))
        listed = f'<ol class="sa-list">{rows}</ol>'
    alt = (
        f"Map of {len(everything) - len(centroids)} training prompts of {len(dispatcher.names)} experts, the centroid "
        f"of each, and {len(prompts)} prompts of yours."
    )
    caption = (
        f"{alt} Shown are the two of {centroids.shape[1]} directions in which the centroids differ most: what lies "
        "close together here may be apart in another."
    )
    return f'<section class="sa-card">{figure(scatter(dots, alt), caption)}{listed}</section>'
