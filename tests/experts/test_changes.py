"""What an expert or a LoRA changes: tables of z − 1, norms of BA, and pictures that show them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from experts import ExpertLibrary
from experts.changes import by_layer, changes, draw_changes, full_colour, norms, plot_changes, plot_norms
from experts.exchange.lora import Lora


def test_kinds_of_matrices_are_told_apart() -> None:
    names = ["layers.0.self_attn.q_proj", "layers.0.cross_attn.q_proj", "layers.2.self_attn.q_proj"]
    layers, tables = by_layer({name: torch.full((2 + k,), float(k)) for k, name in enumerate(names)})
    assert layers == ["0", "2"]
    assert list(tables) == ["self_attn.q_proj", "cross_attn.q_proj"]
    first, second = tables.values()
    assert first[0].tolist() == pytest.approx([0, 0, math.nan, math.nan], nan_ok=True)
    assert first[1].tolist() == [2, 2, 2, 2]
    assert second[0].tolist() == [1, 1, 1]
    assert np.isnan(second[1]).all()


def test_a_matrix_outside_of_layers_has_a_place() -> None:
    layers, tables = by_layer({"lm_head": torch.ones(2)})
    assert (layers, list(tables)) == (["0"], ["lm_head"])


def test_the_panels_show_z_minus_one(library: ExpertLibrary) -> None:
    z = library.z("a")
    figure, changed = Figure(), changes(z)
    layers, tables = by_layer(changed)
    most = full_colour(changed)
    draw_changes(figure, layers, tables, most)
    *panels, bar = [axes for axes in figure.axes if axes.has_data()]
    shown = {panel.get_title(): panel.images[0] for panel in panels}
    assert {title.split(".")[-1] for title in shown} == {matrix.split(".")[-1] for matrix in z}
    for matrix, own in z.items():
        image = shown[matrix.split(".")[-1]]
        drawn = np.asarray(image.get_array())[int(matrix.split(".")[2])]
        assert drawn[: len(own)].tolist() == (own - 1).tolist()
        assert image.get_clim() == (-most, most)
    assert "z − 1" in bar.get_ylabel()


def test_a_stack_is_shown_by_its_mean(tmp_path: Path) -> None:
    z = {"layers.0.mlp.experts.up": torch.tensor([[1.5, 1.0], [0.5, 1.5]])}
    assert changes(z)["layers.0.mlp.experts.up"].tolist() == [0.0, 0.25]
    plot_changes("x", z, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").format == "PNG"


def test_an_expert_that_changes_nothing_is_drawn_white(tmp_path: Path) -> None:
    plot_changes("x", {"layers.0.up": torch.ones(3)}, tmp_path / "x.png")
    dots = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    middle = dots[dots.shape[0] // 2, dots.shape[1] // 3]
    assert middle.tolist() == [255, 255, 255]


def test_norms_are_those_of_what_a_lora_adds(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator)
    stack_a, stack_b = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 5, 3, generator=generator)
    lora = Lora({"layers.1.q": a, "layers.1.experts": stack_a}, {"layers.1.q": b, "layers.1.experts": stack_b}, alpha=6)
    found = norms(lora)
    assert found["layers.1.q"].item() == pytest.approx((2 * b @ a).norm().item(), rel=1e-5)
    both = [(2 * own_b @ own_a).norm().item() for own_a, own_b in zip(stack_a, stack_b, strict=True)]
    assert found["layers.1.experts"].item() == pytest.approx(sum(both) / 2, rel=1e-5)
    plot_norms("x", lora, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").format == "PNG"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(figure: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plot_changes("x", {"layers.0.up": torch.ones(3)}, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
