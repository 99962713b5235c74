"""Controls that several tabs share, and prompts to begin with."""

from __future__ import annotations

import gradio as gr

from selfadapt.page.looks import note

EXAMPLES = {
    "There are 6 boxes with 7 eggs in each. How many eggs are there in all?": "Boxes of eggs",
    "Noah has 6 eggs. Ida has 3 times as many. How many eggs does Ida have?": "Three times as many",
    "Kate has 8 marbles. Paul gives Kate 7 more. How many marbles does Kate have now?": "A gift of marbles",
    "What is the capital of France?": "Something else: a capital",
}
"""Prompt → its label."""
FIRST = next(iter(EXAMPLES))


def length_slider() -> gr.Slider:
    return gr.Slider(8, 128, 16, step=8, label="Longest answer, in tokens (roughly words)")


def status_line(name: str) -> gr.HTML:
    """Where the page says what it does, and what went wrong."""
    return gr.HTML(note(" "), elem_id=name, elem_classes="sa-status")
