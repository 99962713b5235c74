"""The look of plots: colours that are told apart, and no setting of the reader's that gets in, or out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from experts.outside.plots import SERIES, diverging, mark, picture, plot_intervals

# Machado, Oliveira and Fernandes (2009), on linear RGB: who lacks one kind of cones.
SEEN = {
    "all": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no medium": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB [3] of what is seen of a colour."""
    rgb = np.array(to_rgb(color))
    linear = np.clip(seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    share = XYZ @ linear / WHITE
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart_by_all_eyes(seen: str) -> None:
    matrix = np.array(SEEN[seen])
    for one, other in itertools.combinations(SERIES, 2):
        assert np.linalg.norm(lab(one, matrix) - lab(other, matrix)) > 15, (one, other)


def test_series_are_told_apart_without_colours() -> None:
    assert len({mark(place)[1:] for place in range(7)}) == 7
    assert len({mark(place) for place in range(56)}) == 56


def test_no_change_is_white_and_its_ends_are_as_dark() -> None:
    scale = diverging()
    assert scale(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.03)
    louder, quieter = (lab(matplotlib.colors.to_hex(scale(end)), np.eye(3))[0] for end in (1.0, 0.0))
    assert louder == pytest.approx(quieter, abs=10)


def test_the_reader_s_settings_stay_out_and_stay(tmp_path: Path) -> None:
    def draw(name: str) -> bytes:
        with picture(tmp_path / name, 3, 2) as figure:
            plot_intervals(figure.subplots(), [1, 2], [0.4, 0.9], [(0.3, 0.5), (0.8, 1.0)], color=SERIES[0])
        return (tmp_path / name).read_bytes()

    plain = draw("plain.png")
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black"}):
        assert draw("again.png") == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_intervals_reach_from_end_to_end(tmp_path: Path) -> None:
    for flat in (False, True):
        with picture(tmp_path / "x.png", 3, 2) as figure:
            axes = figure.subplots()
            plot_intervals(axes, [1], [0.4], [(0.3, 0.6)], flat=flat)
            (bar,) = axes.containers[0].lines[2]
            assert bar.get_segments()[0][:, 0 if flat else 1].tolist() == pytest.approx([0.3, 0.6])


def test_drawing_starts_no_gui(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from experts.outside.plots import picture\n"
        f"with picture(Path({str(tmp_path / 'x.png')!r}), 2, 2): pass\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert Image.open(tmp_path / "x.png").size == (240, 240)
