"""The tab Ask: a prompt, pass one with all who were considered, and pass two beside the base's answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape

import gradio as gr

from dispatch.base import Classifier, Considered
from experts.mixture import Mixture
from selfadapt.page.answers import Answer, answers, read
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import BASE, chips, color_of, note
from selfadapt.serving.served import Served

EXAMPLES = (
    "There are 6 boxes with 7 eggs in each. How many eggs are there in all?",
    "Noah has 6 eggs. Ida has 3 times as many. How many eggs does Ida have?",
    "Kate has 8 marbles. Paul gives Kate 7 more. How many marbles does Kate have now?",
    "What is the capital of France?",
)
INTRODUCTION = """\
Ask something. **Pass one** reads your prompt and decides which expert should answer, if any. **Pass two** answers with that
expert switched on, here beside the plain base, so that you see what the expert changes.
"""


def ask_tab(served: Served) -> None:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=3):
            prompt = gr.Textbox(EXAMPLES[0], label="Your prompt", max_lines=6, elem_id="ask-prompt")
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
        with gr.Column(scale=2):
            gr.Examples([[each] for each in EXAMPLES], prompt, label="Or one of these")
            tokens = length_slider()
    status = status_line("ask-status")
    pass_one = gr.HTML(elem_id="ask-pass-one")
    written = gr.HTML(elem_id="ask-answers")

    def ask(asked: str, new_tokens: int) -> Iterator[Shown]:
        text, start = read(asked), time.perf_counter()
        yield {status: note("Pass one: who should answer?"), pass_one: "", written: ""}
        mixture, considered = consider(served, [text])
        seconds = time.perf_counter() - start
        yield {status: note("Pass two: answering …"), pass_one: _pass_one(served, mixture, considered, seconds)}
        for own, base in side_by_side(served, text, mixture, int(new_tokens)):
            yield {written: pair(served.names, mixture[0], own, base)}
        yield {status: note(f"Done. {'An expert' if mixture[0] else 'The base'} answered.")}

    gr.on(
        [go.click, prompt.submit],
        said(status, ask),
        [prompt, tokens],
        [status, pass_one, written],
        show_progress="hidden",
        api_name="ask",
    )


def length_slider() -> gr.Slider:
    return gr.Slider(8, 128, 24, step=8, label="Longest answer, in tokens (about words)")


def status_line(name: str) -> gr.HTML:
    """Where the page says what it does, and what went wrong."""
    return gr.HTML(note(" "), elem_id=name, elem_classes="sa-status")


def consider(served: Served, prompts: Sequence[str]) -> tuple[Mixture, Considered | None]:
    """Pass one, and how the dispatcher came to it, where it can say."""
    served.refresh()
    dispatcher = served.dispatcher
    if not isinstance(dispatcher, Classifier):
        return dispatcher(prompts), None
    considered = dispatcher.consider(prompts)
    return considered.decide(dispatcher.soft), considered


def side_by_side(
    served: Served, prompt: str, mixture: Mixture, new_tokens: int
) -> Iterator[tuple[Answer, Answer | None]]:
    """An answer under a mixture, and the base's to the same prompt; None where the mixture is the base."""
    if mixture.is_base:
        for (only,) in answers(served, [prompt], mixture, new_tokens):
            yield only, None
        return
    both = Mixture.together([mixture, Mixture.of({})])
    for own, base in answers(served, [prompt, prompt], both, new_tokens):
        yield own, base


def pair(names: Sequence[str], weights: dict[str, float], own: Answer, base: Answer | None) -> str:
    """Two answers side by side, as HTML."""
    first = max(weights, key=lambda name: abs(weights[name]), default=BASE)
    cards = [_answer(f"Answer under {chips(weights, names)}", own, color_of(first, names))]
    if base is None:
        cards.append(
            '<div class="sa-card"><h3>The base alone</h3><p class="sa-quiet">No expert has a part in this answer: it is '
            "the base's, letter by letter.</p></div>"
        )
    else:
        cards.append(_answer(f"The same prompt, {chips({}, names)} alone", base, color_of(BASE, names)))
    return f'<div class="sa-pair">{"".join(cards)}</div>'


def _answer(title: str, answer: Answer, color: str) -> str:
    writing = "" if answer.ended else " sa-writing"
    return (
        f'<section class="sa-card sa-answer" style="--own:{color}"><h3>{title}</h3>'
        f'<div class="sa-text{writing}">{escape(answer.text)}</div></section>'
    )


def _pass_one(served: Served, mixture: Mixture, considered: Considered | None, seconds: float) -> str:
    """Who was considered, with what confidence, against what threshold."""
    weights = mixture[0]
    title = f"<h3>Pass one <span class='sa-quiet'>({seconds:.2f} s)</span></h3>"
    if considered is None:
        if not served.names:
            why = "The library is empty: the base answers."
        elif weights:
            why = "Here nobody is asked: the same mixture answers every prompt, or a network writes one."
        else:
            why = "Here nobody is asked: the base answers every prompt."
        return f'<section class="sa-card">{title}<p>{chips(weights, served.names)}</p><p>{why}</p></section>'
    return f'<section class="sa-card">{title}{_verdict(considered, weights, served.names)}{_table(considered, served)}</section>'


def _verdict(considered: Considered, weights: dict[str, float], names: Sequence[str]) -> str:
    best = int(considered.probabilities[0].argmax())
    score, sure = considered.scores[0].max().item(), considered.probabilities[0, best].item()
    what = "similarity" if considered.scale == "cosine" else "probability"
    if weights:
        over = f"The best {what}, {score:.2f}, reaches the threshold, {considered.threshold:.2f}."
        return f"<p class='sa-lead'>{chips(weights, names)} answers, with a confidence of {sure:.0%}.</p><p>{over}</p>"
    under = (
        f"The best {what}, {score:.2f}, stays below the threshold, {considered.threshold:.2f}: no expert is for this."
    )
    return f"<p class='sa-lead'>{chips({}, names)} answers.</p><p>{under}</p>"


def _table(considered: Considered, served: Served) -> str:
    described = served.library.descriptions()
    rows = []
    for k, name in enumerate(considered.names):
        score, sure = considered.scores[0, k].item(), considered.probabilities[0, k].item()
        bar = (
            f'<div class="sa-bar" aria-hidden="true"><i style="width:{100 * min(max(score, 0), 1):.1f}%"></i>'
            f'<b style="left:{100 * min(max(considered.threshold, 0), 1):.1f}%"></b></div>'
        )
        chosen = ' class="sa-chosen"' if k == int(considered.probabilities[0].argmax()) else ""
        rows.append(
            f'<tr{chosen} style="--own:{color_of(name, served.names)}"><th scope="row">{escape(name)}</th>'
            f'<td class="sa-wide sa-quiet">{escape(described.get(name, name))}</td>'
            f'<td>{score:.2f}{bar}</td><td class="sa-number">{sure:.0%}</td></tr>'
        )
    what = "Similarity to its prompts" if considered.scale == "cosine" else "Probability"
    return (
        '<table class="sa-table"><caption class="sa-reader">Who was considered</caption><thead><tr>'
        f'<th scope="col">Expert</th><th scope="col" class="sa-wide">For</th><th scope="col">{what}; the line is the '
        f'threshold</th><th scope="col">Confidence</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
