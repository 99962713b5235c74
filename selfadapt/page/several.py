"""The tab Several: many prompts in one batch, each under a mixture of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import cast

import gradio as gr
from torch import Tensor

from experts.mixture import Mixture
from experts.outside.errors import UserError
from selfadapt.page.answers import Answer, answers, read
from selfadapt.page.controls import EXAMPLES, length_slider, status_line
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import chips, note
from selfadapt.page.pass_one import consider
from selfadapt.serving.served import Served

MOST = 12
"""The most prompts at once."""
INTRODUCTION = """\
Each line is a prompt. All are answered **at the same time, in one batch**, each under an expert of its own: no copies
of the model are made, and none waits for another.
"""
MORE = (
    "State the final answer to the following arithmetic problem: 4 + 9 - 2 =",
    "Name three colours of the rainbow.",
)


def several_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    prompts = gr.Textbox("\n".join([*EXAMPLES, *MORE]), label="Prompts, one per line", lines=6, max_lines=MOST)
    tokens = length_slider()
    go = gr.Button("Answer all", variant="primary", elem_id="several-go")
    status = status_line("several-status")
    written = gr.HTML(elem_id="several-answers")

    def ask(asked: str, new_tokens: int) -> Iterator[Shown]:
        lines = [read(line) for line in (asked or "").splitlines() if line.strip()] or [read("")]
        if len(lines) > MOST:
            raise UserError(f"there are {len(lines)} prompts; at most {MOST} may be asked at once")
        yield {status: note("Pass one: who should answer what?")}
        mixture, _ = consider(served, lines)
        start, rows = time.perf_counter(), [Answer() for _ in lines]
        yield {status: note("Pass two: answering all at once …")}
        for rows in answers(served, lines, mixture, int(new_tokens)):
            yield {written: _table(served.names, lines, mixture, rows)}
        seconds, mixtures = time.perf_counter() - start, len({*mixture.groups()})
        count = sum(row.tokens for row in rows)
        yield {
            status: note(
                f"Done. {len(lines)} prompts in one batch, under {mixtures} different mixtures: {count} tokens in "
                f"{seconds:.1f} s."
            )
        }

    go.click(said(status, ask), [prompts, tokens], [status, written], show_progress="hidden", api_name="several")


def _table(names: Sequence[str], prompts: Sequence[str], mixture: Mixture, rows: Sequence[Answer]) -> str:
    lines = []
    for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        unsure = mixture.confidence is None or not mixture[place]
        sure = "" if unsure else f" <span class='sa-quiet'>{cast(Tensor, mixture.confidence)[place]:.0%}</span>"
        writing = "" if row.ended else ' class="sa-writing"'
        lines.append(
            f"<tr><td>{escape(prompt)}</td><td>{chips(mixture[place], names)}{sure}</td><td><span{writing}>"
            f"{escape(row.text)}</span></td></tr>"
        )
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Prompt", "Who answers", "Answer"))
    about = '<caption class="sa-reader">Prompts, who answered, and the answers</caption>'
    return (
        f'<div class="sa-card sa-scroll"><table class="sa-table sa-stack">{about}<thead><tr>{head}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div>"
    )
