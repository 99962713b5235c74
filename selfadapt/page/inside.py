"""The tab Look inside: what an expert changes, z − 1 by layer, matrix and singular index; two experts compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

import gradio as gr
import torch
from torch import Tensor

from experts.changes import by_layer, changes, full_colour
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.page.controls import status_line
from selfadapt.page.drawing import figure, heat_map
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import chip, note
from selfadapt.serving.served import Served

NOBODY = "(nobody)"
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
        changed = {each: changes_of(served.library, each) for each in chosen}
        most = max(full_colour(own) for own in changed.values())
        pictures = [_shown(each, own, most, served.names) for each, own in changed.items()]
        compared = _compared(*changed.items()) if len(chosen) == 2 else ""
        yield {status: note(" "), drawn: compared + "".join(pictures)}

    action = said(status, look)
    gr.on([one.input, other.input], action, [one, other], [status, drawn], show_progress="hidden", api_name="inside")
    if names:
        for component, value in next(action(names[0], NOBODY)).items():
            component.value = value


def changes_of(library: ExpertLibrary, name: str) -> dict[str, Tensor]:
    """Matrix → z − 1 [r] of an expert; for a stack of matrices, the mean over them.

    Raises:
        UserError: if it is a LoRA, or damaged.
    """
    if library.is_lora(name):
        raise UserError(f"{name} is a LoRA: it adds matrices of its own, and has no knobs to look at")
    return changes(library.z(name))


def _shown(name: str, changed: Mapping[str, Tensor], most: float, names: list[str]) -> str:
    layers, tables = by_layer(changed)
    turned = torch.cat([*changed.values()])
    up, mean = (turned > 0).float().mean().item(), turned.abs().mean().item()
    alt = (
        f"What {name} changes: {len(turned):,} knobs in {len(layers)} layers and {len(tables)} kinds of matrices, by "
        f"{mean:.1%} on average; {up:.0%} are turned up."
    )
    picture = figure(heat_map(tables, most, rows=layers, alt=alt), f"{alt} Full colour is {most:.0%}.")
    return f'<section class="sa-card"><h3>{chip(name, names)}</h3>{picture}{_largest(changed)}</section>'


def _largest(changed: Mapping[str, Tensor], count: int = 5) -> str:
    """The picture in words: the knobs that are turned the most."""
    each = [(value, matrix, place) for matrix, own in changed.items() for place, value in enumerate(own.tolist())]
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
    """How alike two experts are: the cosine of their changes; where an expert has nothing, its change is 0."""
    (a, mine), (b, theirs) = one, other
    dot = sum(
        float(own[: len(theirs[matrix])] @ theirs[matrix][: len(own)])
        for matrix, own in mine.items()
        if matrix in theirs
    )
    lengths = [float(torch.cat([*changed.values()]).norm()) for changed in (mine, theirs)]
    cosine = dot / (lengths[0] * lengths[1] or 1.0)
    return note(
        f"{a} and {b}: the cosine of their changes is {cosine:.2f}. At 1 they would turn the same knobs the same way; "
        "at 0 they have nothing in common, and at -1 one undoes the other."
    )
