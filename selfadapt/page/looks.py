"""What the page looks like: its theme, its style sheet, and each expert's colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import gradio as gr

from experts.outside.plots import GREY as PLAIN
from experts.outside.plots import SERIES

BASE = "base"
COLORS = tuple(f"var(--sa-{number})" for number in range(len(SERIES)))
"""The plots' colours; the style sheet redefines them for the dark."""
GREY = "var(--sa-grey)"

_LIGHT = "".join(f" --sa-{number}: {color};" for number, color in enumerate(SERIES))
CSS = f":root {{ --sa-grey: {PLAIN};{_LIGHT} }}\n" + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """The theme, with the reader's own fonts: nothing is fetched from anywhere."""
    return gr.themes.Soft(
        primary_hue="indigo",
        secondary_hue="orange",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        # White text needs something darker than Gradio's choice.
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        block_title_text_color="*primary_700",
        block_title_text_color_dark="*primary_200",
    )


def color_of(name: str, names: Sequence[str]) -> str:
    """The colour of an expert among those of the library; grey for the base and for unknown names."""
    return COLORS[list(names).index(name) % len(COLORS)] if name in names else GREY


def chip(name: str, names: Sequence[str], weight: float | None = None) -> str:
    """An expert's name in its colour, and its weight."""
    said = "" if weight is None else f" <b>{weight:.2f}</b>"
    return f'<span class="sa-chip" style="--own:{color_of(name, names)}">{escape(name)}{said}</span>'


def chips(weights: Mapping[str, float], names: Sequence[str]) -> str:
    """Who has a part in an answer: every expert in a row of a mixture, or the base."""
    if not weights:
        return chip(BASE, names)
    return " ".join(chip(name, names, None if [*weights.values()] == [1.0] else w) for name, w in weights.items())


def note(text: str, kind: str = "note") -> str:
    """A line that says what is going on: a `note`, or an `error`."""
    return f'<p class="sa-{kind}">{escape(text)}</p>' if text else ""
