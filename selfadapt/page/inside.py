"""The tab Look inside: what an expert changes, z − 1 by layer, matrix and singular index; two experts compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.page.controls import status_line
from selfadapt.page.drawing import figure, heat_map
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import chip, note
from selfadapt.serving.served import Served

NOBODY = "(nobody)"
LAYER = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
INTRODUCTION = """\
This is all that an expert is. Every dot is a **volume knob** of one channel of one matrix of the model: **orange** is
turned up, **blue** is turned down, and clear is left as it is in the base.
"""


def inside_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    names = served.names
    with gr.Row():
        one = gr.Dropdown(names, value=names[0] if names else None, label="Expert", elem_id="inside-one")
        other = gr.Dropdown([NOBODY, *names], value=NOBODY, label="Compared with", elem_id="inside-other")
    status = status_line("inside-status")
    drawn = gr.HTML(elem_id="inside-picture")

    def look(name: str | None, beside: str | None) -> Iterator[Shown]:
        if not name:
            raise UserError("the library is empty: there is no expert to look into")
        chosen = [name] if beside in (None, NOBODY, name) else [name, str(beside)]
        changes = {each: changes_of(served.library, each) for each in chosen}
        most = max(_most(own) for own in changes.values())
        pictures = [_shown(each, own, most, served.names) for each, own in changes.items()]
        compared = _compared(*changes.items()) if len(chosen) == 2 else ""
        yield {status: note(" "), drawn: compared + "".join(pictures)}

    action = said(status, look)
    gr.on([one.input, other.input], action, [one, other], [status, drawn], show_progress="hidden", api_name="inside")
    if names:
        for component, value in next(action(names[0], NOBODY)).items():
            component.value = value


def changes_of(library: ExpertLibrary, name: str) -> dict[str, Tensor]:
    """Matrix → z − 1 [r] of an expert; of a stack of matrices the mean over them.

    Raises:
        UserError: if it is a LoRA, or damaged.
    """
    library.path(name)
    if library.is_lora(name):
        raise UserError(f"{name} is a LoRA: it adds matrices of its own, and has no knobs to look at")
    return {matrix: (z if z.ndim == 1 else z.mean(0)) - 1 for matrix, z in library.z(name).items()}


def by_layer(changes: Mapping[str, Tensor]) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """The changes as a table [layers, Σ r], the layers' names, and the blocks of columns, one a kind of matrix.

    NaN where a layer has no such matrix, or fewer channels.
    """
    placed = {}
    for matrix in changes:
        found = LAYER.match(matrix)
        placed[matrix] = (int(found[2]), found[3]) if found else (0, matrix)
    layers = sorted({layer for layer, _ in placed.values()})
    widths: dict[str, int] = {}
    for matrix, own in changes.items():
        kind = placed[matrix][1]
        widths[kind] = max(widths.get(kind, 0), len(own))
    table = np.full((len(layers), sum(widths.values())), np.nan)
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
    for matrix, own in changes.items():
        layer, kind = placed[matrix]
        table[layers.index(layer), starts[kind] : starts[kind] + len(own)] = own.numpy()
    short = [kind.split(".")[-1] for kind in widths]
    named = short if len({*short}) == len(short) else [*widths]
    return table, [str(layer) for layer in layers], dict(zip(named, widths.values(), strict=True))


def _most(changes: Mapping[str, Tensor]) -> float:
    """The size that has full colour: few knobs are turned further."""
    return torch.cat([own.abs() for own in changes.values()]).quantile(0.995).item()


def _shown(name: str, changes: Mapping[str, Tensor], most: float, names: list[str]) -> str:
    table, layers, blocks = by_layer(changes)
    turned = torch.cat([*changes.values()])
    up, mean = (turned > 0).float().mean().item(), turned.abs().mean().item()
    alt = (
        f"What {name} changes: {len(turned):,} knobs in {len(layers)} layers and {len(blocks)} kinds of matrices, by "
        f"{mean:.1%} on average; {up:.0%} are turned up."
    )
    picture = figure(heat_map(table, most, rows=layers, blocks=blocks, alt=alt), f"{alt} Full colour is {most:.0%}.")
    return f'<section class="sa-card"><h3>{chip(name, names)}</h3>{picture}{_largest(changes)}</section>'


def _largest(changes: Mapping[str, Tensor], count: int = 5) -> str:
    """The picture in words: the knobs that are turned the most."""
    each = [(value, matrix, place) for matrix, own in changes.items() for place, value in enumerate(own.tolist())]
    each.sort(key=lambda found: -abs(found[0]))
    rows = "".join(
        f'<tr><td>{escape(matrix)}</td><td class="sa-number">{place + 1}</td><td>{abs(value):.1%} '
        f"{'louder' if value > 0 else 'quieter'}</td></tr>"
        for value, matrix, place in each[:count]
    )
    return (
        '<details class="sa-why"><summary>The knobs that are turned the most</summary><div class="sa-scroll"><table '
        'class="sa-table"><thead><tr><th scope="col">Matrix</th><th scope="col">Channel, 1 is the loudest</th><th '
        f'scope="col">Change</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _compared(one: tuple[str, Mapping[str, Tensor]], other: tuple[str, Mapping[str, Tensor]]) -> str:
    """How alike two experts are: the cosine of their changes, where one that has nothing counts as none."""
    (a, mine), (b, theirs) = one, other
    dot = sum(
        float(own[: len(theirs[matrix])] @ theirs[matrix][: len(own)])
        for matrix, own in mine.items()
        if matrix in theirs
    )
    lengths = [float(torch.cat([*changes.values()]).norm()) for changes in (mine, theirs)]
    cosine = dot / (lengths[0] * lengths[1] or 1.0)
    return note(
        f"{a} and {b}: the cosine of their changes is {cosine:.2f}. At 1 they would turn the same knobs the same way; "
        "at 0 they have nothing in common, and at -1 one undoes the other."
    )
