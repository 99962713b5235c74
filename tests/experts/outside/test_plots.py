"""The look of plots: colours that are told apart, and no setting of the reader's that gets in, or out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from experts.outside.plots import SERIES, diverging, mark, picture, plot_intervals
from tests.eyes import SEEN, lab, nearest


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart_by_all_eyes(seen: str) -> None:
    assert nearest(SERIES, seen) > 15


def test_series_are_told_apart_without_colours() -> None:
    assert len({mark(place)[1:] for place in range(7)}) == 7
    assert len({mark(place) for place in range(56)}) == 56


def test_no_change_is_white_and_its_ends_are_as_dark() -> None:
    scale = diverging()
    assert scale(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.03)
    louder, quieter = (lab(to_hex(scale(end)))[0] for end in (1.0, 0.0))
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


@pytest.mark.long
def test_drawing_starts_no_gui(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from experts.outside.plots import picture\n"
        f"with picture(Path({str(tmp_path / 'x.png')!r}), 2, 2): pass\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert Image.open(tmp_path / "x.png").size == (240, 240)
