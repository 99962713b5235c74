"""Tables and pictures of what an expert or a LoRA changes, by layer and kind of matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from experts.exchange.lora import Lora
from experts.outside.plots import AMOUNTS, diverging, heat_map, percent, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYER = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
ACROSS = 4
"""The most panels side by side."""


def changes(z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrix → z − 1 [r]; for a stack of matrices, whose z is [E, r], the mean over them."""
    return {matrix: (own if own.ndim == 1 else own.mean(0)) - 1 for matrix, own in z.items()}


def norms(lora: Lora) -> dict[str, Tensor]:
    """Matrix → the Frobenius norm [1] of what a LoRA adds to it, B A with its scaling; for a stack the mean norm."""
    # ‖BA‖² = Σ (BᵀB) ∘ (AAᵀ), two matrices of the rank's size.
    squares = {matrix: ((b.mT @ b) * (a @ a.mT)).sum((-1, -2)) for matrix, (a, b) in lora.factors.items()}
    return {matrix: square.clamp(min=0).sqrt().mean()[None] for matrix, square in squares.items()}


def by_layer(values: Mapping[str, Tensor]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of the layers, lowest first, and kind of matrix → its values [layers, r].

    NaN where a layer has no such matrix, or fewer values.
    """
    placed = {}
    for matrix in values:
        found = LAYER.match(matrix)
        placed[matrix] = (int(found[2]), found[3]) if found else (0, matrix)
    layers = sorted({layer for layer, _ in placed.values()})
    kinds = dict.fromkeys(kind for _, kind in placed.values())
    short = [kind.split(".")[-1] for kind in kinds]
    named = dict(zip(kinds, short if len({*short}) == len(short) else kinds, strict=True))
    widths = {kind: max(len(own) for matrix, own in values.items() if placed[matrix][1] == kind) for kind in kinds}
    tables = {kind: np.full((len(layers), width), np.nan) for kind, width in widths.items()}
    for matrix, own in values.items():
        layer, kind = placed[matrix]
        tables[kind][layers.index(layer), : len(own)] = own.numpy()
    return [str(layer) for layer in layers], {named[kind]: table for kind, table in tables.items()}


def full_colour(changed: Mapping[str, Tensor]) -> float:
    """The size of change that is drawn in full colour: only 1 in 200 is larger."""
    return torch.cat([own.abs() for own in changed.values()]).quantile(0.995).item() or 1.0


def plot_changes(name: str, z: Mapping[str, Tensor], path: Path) -> None:
    """Writes an expert's z − 1 to the PNG `path`, as one heat map for each kind of matrix."""
    changed = changes(z)
    layers, tables = by_layer(changed)
    stacked = any(own.ndim == 2 for own in z.values())
    with picture(path, *_size(len(layers), len(tables))) as figure:
        draw_changes(figure, layers, tables, full_colour(changed))
        figure.suptitle(f"{name}: which singular values it makes louder, and which quieter")
        figure.supxlabel("singular value, 1 the largest" + ("; of a stack of matrices the mean" if stacked else ""))


def draw_changes(figure: Figure, layers: list[str], tables: Mapping[str, np.ndarray], most: float) -> None:
    """Draws a panel for each table of `by_layer`, and one colour bar for all of them.

    Args:
        most: the size of change that is drawn in full colour.
    """
    down, across = _panels(len(tables))
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, (kind, table) in zip(panels.flat, tables.items(), strict=False):
        width = table.shape[1]
        place = (0.5, width + 0.5, -0.5, len(layers) - 0.5)
        colours: Any = {"cmap": diverging(), "vmin": -most, "vmax": most}
        image = heat_map(axes, table, **colours, aspect="auto", origin="lower", extent=place)
        axes.set_title(kind)
        axes.set_xticks(sorted({1, (width + 1) // 2, width}))
        _name_layers(axes, layers)
    for axes in panels.flat[len(tables) :]:
        axes.axis("off")
    figure.supylabel("layer")
    beyond = any(np.nanmax(np.abs(table)) > most for table in tables.values())
    bar: Any = {"format": percent(), "extend": "both" if beyond else "neither"}
    figure.colorbar(image, ax=panels, label="z − 1, in % of the singular value", **bar)


def plot_norms(name: str, lora: Lora, path: Path) -> None:
    """Writes the norm of what a LoRA adds to each matrix to the PNG `path`, as a heat map of layers by kinds."""
    layers, tables = by_layer(norms(lora))
    with picture(path, 2.6 + 0.8 * len(tables), _size(len(layers), 1)[1]) as figure:
        axes = figure.subplots()
        table = np.concatenate([*tables.values()], 1)  # [layers, kinds]
        image = heat_map(axes, table, cmap=AMOUNTS, vmin=0, aspect="auto", origin="lower")
        axes.set_xticks(range(len(tables)), list(tables), rotation=45, ha="right")
        axes.set_ylabel("layer")
        _name_layers(axes, layers)
        figure.colorbar(image, label="‖BA‖, Frobenius norm, in the weights' unit")
        figure.suptitle(f"{name}: what this LoRA adds")


def _panels(count: int) -> tuple[int, int]:
    """The rows and columns that so many panels are laid out in."""
    down = -(-count // ACROSS)
    return down, -(-count // down)


def _size(layers: int, panels: int) -> tuple[float, float]:
    """The size of the picture, in inches."""
    down, across = _panels(panels)
    return 2.2 + 2.2 * across, 1.0 + down * min(4.5, max(2.4, 0.12 * layers + 0.5))


def _name_layers(axes: Axes, layers: list[str]) -> None:
    every = max(1, round(len(layers) / 8))
    axes.set_yticks(range(0, len(layers), every), layers[::every])
