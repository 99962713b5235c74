"""An answer under a mixture beside the base's answer to the same prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from experts.mixture import Mixture
from selfadapt.page.answers import Answer, answers
from selfadapt.page.looks import BASE, chips, color_of
from selfadapt.serving.served import Served


def side_by_side(
    served: Served, prompt: str, mixture: Mixture, new_tokens: int
) -> Iterator[tuple[Answer, Answer | None]]:
    """An answer under a mixture, and the base's to the same prompt; None where the mixture is the base."""
    mixtures = [mixture] if mixture.is_base else [mixture, Mixture.of({})]
    for own, *base in answers(served, [prompt] * len(mixtures), Mixture.together(mixtures), new_tokens):
        yield own, base[0] if base else None


def pair(names: Sequence[str], weights: dict[str, float], own: Answer, base: Answer | None) -> str:
    """Two answers side by side, as HTML."""
    first = max(weights, key=lambda name: abs(weights[name]), default=BASE)
    cards = [_answer(f"Answer under {chips(weights, names)}", own, color_of(first, names))]
    if base is None:
        cards.append(
            '<div class="sa-card"><h3>The base alone</h3><p class="sa-quiet">No expert has a part in this answer: '
            "it is the base's, letter for letter.</p></div>"
        )
    else:
        cards.append(_answer(f"The same prompt, {chips({}, names)} alone", base, color_of(BASE, names)))
    return f'<div class="sa-pair">{"".join(cards)}</div>'


def _answer(title: str, answer: Answer, color: str) -> str:
    writing = "" if answer.ended else " sa-writing"
    nothing = '<span class="sa-quiet">(nothing: the answer ended at once)</span>'
    said = nothing if answer.ended and not answer.text.strip() else escape(answer.text)
    return (
        f'<section class="sa-card sa-answer" style="--own:{color}"><h3>{title}</h3>'
        f'<div class="sa-text{writing}">{said}</div></section>'
    )
