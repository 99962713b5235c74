"""One look for every plot: sizes, intervals, and colours and marks that are distinct to the colour-blind and in grey.

matplotlib is imported when something is drawn; pyplot, which would start a GUI backend, never is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experts.outside.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import Formatter

SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255")
"""Okabe and Ito's colours without their yellow, which is lost on white paper; the last is Paul Tol's wine."""
GREY = "#6e6e6e"
"""The colour of the base, and of whatever else things are compared with."""
UP, DOWN = SERIES[0], SERIES[1]
"""The colours of louder than in the base, and of quieter."""
AMOUNTS = "Blues"
"""The colour map of amounts from zero up; for differences it is `diverging`."""
MARKERS = "os^DvPX"  # as many as hatches, but not as many as colours: a pair repeats only after 56
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++")

LOOK: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "errorbar.capsize": 3,
    "hatch.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 120,
    "svg.hashsalt": "selfadapt",  # the same file each time
}
"""matplotlib settings, on top of its own defaults."""


class Mark(NamedTuple):
    """How a series is drawn, in any plot."""

    color: str
    marker: str
    hatch: str


def mark(place: int) -> Mark:
    """The mark of the series at this place among those that are drawn."""
    return Mark(SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)], HATCHES[place % len(HATCHES)])


@contextmanager
def look() -> Iterator[None]:
    """Within the block, everything is drawn with this look, whatever matplotlib's settings are."""
    from matplotlib import style

    with style.context(["default", LOOK]):
        yield


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, that becomes the PNG `path`, all or nothing, if the block ends without an error."""
    from matplotlib.figure import Figure

    with look():
        figure = Figure(figsize=(width, height))
        yield figure
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")


def plot_intervals(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    flat: bool = False,
    **options: Any,
) -> None:
    """Plots values with their 95 % intervals.

    Args:
        places: their places on the x axis, or on the y axis if `flat`.
        options: for matplotlib's `errorbar`.
    """
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]
    if flat:
        axes.errorbar(values, places, xerr=errors, **options)
    else:
        axes.errorbar(places, values, yerr=errors, **options)


def heat_map(axes: Axes, table: np.ndarray, **options: Any) -> AxesImage:
    """Draws values [rows, columns] as colours in a frame, grey for NaN, without interpolation.

    Args:
        options: for matplotlib's `imshow`.
    """
    axes.grid(False)
    axes.set_facecolor("#dddddd")
    axes.spines[:].set_visible(True)
    return axes.imshow(table, interpolation="nearest", **options)


def percent() -> Formatter:
    """The formatter for an axis of shares, written as everywhere: 40 %."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1, symbol=" %")


def strength(share: np.ndarray) -> np.ndarray:
    """How much colour a share of the full change gets, both in [0, 1]: small changes should be visible, too."""
    return share**0.7


def diverging() -> Colormap:
    """The colour map from quieter through white, for no change, to louder."""
    from matplotlib.colors import ListedColormap, to_rgb

    share = np.linspace(-1, 1, 257)[:, None]
    full = np.where(share > 0, to_rgb(UP), to_rgb(DOWN))  # [257, 3]
    return ListedColormap(1 - strength(np.abs(share)) * (1 - full), "change")
