"""Pictures as inline SVG, whose text takes the page's colours, light or dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image, ImageColor

from experts.outside.plots import DOWN, UP, strength


def figure(svg: str, caption: str = "") -> str:
    """A picture with its caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="sa-picture">{svg}{below}</figure>'


def heat_map(blocks: Mapping[str, np.ndarray], most: float, *, rows: Sequence[str], alt: str) -> str:
    """Differences from zero as colours: orange above, blue below, and clear at zero.

    Args:
        blocks: name → values [rows, columns], drawn side by side; NaN where there is no value.
        most: the difference that has full colour.
        rows: their names, the lowest row first.
    """
    width, height, left, top = 900, max(160, min(420, 14 * len(rows))), 44, 22
    inner, step = width - left - 8, (height - top - 26) / len(rows)
    picture = _picture(np.concatenate([*blocks.values()], 1)[::-1], most)
    parts = [
        f'<image href="{picture}" x="{left}" y="{top}" width="{inner}" height="{step * len(rows):.1f}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    ]
    every = max(1, round(len(rows) / 8))
    for place, name in enumerate(rows):
        if place % every == 0:
            y = top + (len(rows) - place - 0.5) * step + 4
            parts.append(f'<text x="{left - 6}" y="{y:.1f}" font-size="12" text-anchor="end">{escape(name)}</text>')
    at, total = float(left), sum(block.shape[1] for block in blocks.values())
    for name, block in blocks.items():
        wide = inner * block.shape[1] / total
        parts.append(
            f'<text x="{at + wide / 2:.1f}" y="{top - 8}" font-size="13" text-anchor="middle">{escape(name)}</text>'
            f'<rect x="{at:.1f}" y="{top}" width="{wide:.1f}" height="{step * len(rows):.1f}" fill="none" '
            'class="sa-axis"/>'
        )
        at += wide
    parts.append(
        f'<text x="{left}" y="{height - 8}" font-size="12">each row a layer; in each block the loudest '
        "channel on the left</text>"
    )
    return _svg(width, height, alt, parts)


def _picture(values: np.ndarray, most: float) -> str:
    """Values [rows, columns] as a PNG in a data URL, one dot per value."""
    share = np.clip(np.nan_to_num(values) / most, -1, 1)
    dots = np.zeros((*share.shape, 4), dtype=np.uint8)
    dots[..., :3] = np.where(share[..., None] > 0, ImageColor.getrgb(UP), ImageColor.getrgb(DOWN))
    dots[..., 3] = np.round(255 * strength(np.abs(share)))
    file = io.BytesIO()
    Image.fromarray(dots, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Dots:
    """Dots of one colour in a scatter plot."""

    points: np.ndarray
    """[n, 2]"""
    color: str
    names: Sequence[str]
    """One per dot."""
    large: str = ""
    """"star" or "diamond" if they are large, with their names beside them."""


def scatter(groups: Sequence[Dots], alt: str) -> str:
    """Dots in the plane, on one scale in both directions."""
    width, height, edge = 900, 520, 30
    everything = np.concatenate([group.points for group in groups])
    low, high = everything.min(0), everything.max(0)
    scale = min((width - 2 * edge) / max(high[0] - low[0], 1e-9), (height - 2 * edge) / max(high[1] - low[1], 1e-9))
    parts = []
    for group in groups:
        for (right, up), name in zip((group.points - (low + high) / 2) * scale, group.names, strict=True):
            x, y, title = width / 2 + right, height / 2 - up, f"<title>{escape(name)}</title>"
            if not group.large:
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{group.color}" opacity=".45">{title}</circle>'
                )
                continue
            side, anchor = (-13, "end") if x > width * 0.85 else (13, "start")
            path = _corners(x, y, 11, group.large)
            parts.append(
                f'<path d="{path}" fill="{group.color}" stroke="var(--body-text-color)">{title}</path>'
                f'<text x="{x + side:.1f}" y="{y + 5:.1f}" font-size="16" font-weight="600" text-anchor="{anchor}" '
                f'class="sa-label">{escape(name)}</text>'
            )
    return _svg(width, height, alt, parts)


def _corners(x: float, y: float, r: float, form: str) -> str:
    count = {"star": 10, "diamond": 4}[form]
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.where(np.arange(count) % 2, r * {"star": 0.45, "diamond": 0.75}[form], r)
    points = [f"{x + a:.1f},{y + b:.1f}" for a, b in zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)]
    return "M" + "L".join(points) + "Z"


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    points: Mapping[int, float]
    """Step → value."""
    color: str
    between: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Step → the lowest and the highest that its value could be."""
    dashed: bool = False


def curves(lines: Sequence[Line], alt: str, *, low: float, high: float, percent: bool = False) -> str:
    """Lines over steps, between two bounds."""
    width, height, left, top, bottom = 900, 320, 64, 34, 40
    steps = [step for line in lines for step in line.points]
    last = max([*steps, 1])

    def at(step: float, value: float) -> tuple[float, float]:
        x = left + (width - left - 16) * step / last
        share = (min(max(value, low), high) - low) / (high - low or 1)
        return x, height - bottom - (height - top - bottom) * share

    parts = []
    for tick in np.linspace(low, high, 5):
        x, y = at(0, tick)
        said = f"{tick:.0%}" if percent else f"{tick:.2g}"
        parts.append(
            f'<line x1="{x:.1f}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" class="sa-axis"/>'
            f'<text x="{left - 8}" y="{y + 5:.1f}" font-size="13" text-anchor="end">{said}</text>'
        )
    for step in sorted({round(share * last) for share in (0, 0.25, 0.5, 0.75, 1)}):
        parts.append(
            f'<text x="{at(step, low)[0]:.1f}" y="{height - 16}" font-size="13" text-anchor="middle">{step}</text>'
        )
    parts.append(f'<text x="{width - 16}" y="{height - 2}" font-size="12" text-anchor="end">step</text>')
    for place, line in enumerate(lines):
        own = sorted(line.points.items())
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in own)) if own else ""
        pen = f'stroke="{line.color}" stroke-width="2.5"' + (' stroke-dasharray="7 5"' if line.dashed else "")
        parts.append(f'<path d="{path}" fill="none" {pen}/>')
        for step, value in own:
            x, y = at(step, value)
            said = f"{line.name}, step {step}: " + (f"{value:.1%}" if percent else f"{value:.3f}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{line.color}"><title>{escape(said)}</title></circle>'
            )
            if step in line.between:
                (_, below), (_, above) = (at(step, value) for value in line.between[step])
                parts.append(
                    f'<path d="M{x - 4:.1f},{below:.1f}h8m-4,0V{above:.1f}m-4,0h8" fill="none" stroke="{line.color}" '
                    'stroke-width="1.5"/>'
                )
        x = left + 8 + 330 * place
        parts.append(f'<path d="M{x},15h28" {pen}/><text x="{x + 36}" y="20" font-size="14">{escape(line.name)}</text>')
    return _svg(width, height, alt, parts)


def _svg(width: int, height: int, alt: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(alt)}</title>{"".join(parts)}</svg>'
    )
