"""Pass one as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dispatch.base import Classifier, Considered
from experts.mixture import Mixture
from selfadapt.page.looks import chips, color_of
from selfadapt.serving.served import Served


def consider(served: Served, prompts: Sequence[str]) -> tuple[Mixture, Considered | None]:
    """The mixture, and how the dispatcher came to it, if it can say."""
    served.refresh()
    dispatcher = served.dispatcher
    if not isinstance(dispatcher, Classifier):
        return dispatcher(prompts), None
    considered = dispatcher.consider(prompts)
    return considered.decide(dispatcher.soft), considered


def verdict(served: Served, mixture: Mixture, considered: Considered | None, seconds: float) -> str:
    """HTML that says who was considered for one prompt, with what confidence, against what threshold."""
    chosen = chips(mixture[0], served.names)
    title = f"<h3>Pass one <span class='sa-quiet'>({seconds:.2f} s)</span></h3>"
    if considered is None:
        fixed = "Nothing is compared here: this one answers every prompt, or a network wrote it for this prompt."
        return f'<section class="sa-card">{title}<p class="sa-lead">{chosen}</p><p>{fixed}</p></section>'
    what = "similarity" if considered.scale == "cosine" else "probability"
    score, sure = considered.scores[0].max().item(), considered.probabilities[0].max().item()
    if mixture.is_base:
        lead = f"{chosen} answers."
        why = f"The best {what}, {score:.2f}, is below the threshold, {considered.threshold:.2f}: no expert fits."
    else:
        lead = f"{chosen} answers, with a confidence of {sure:.0%}."
        why = f"The best {what}, {score:.2f}, reaches the threshold, {max(0.0, considered.threshold):.2f}."
    table = _table(considered, served)
    return f'<section class="sa-card">{title}<p class="sa-lead">{lead}</p><p>{why}</p>{table}</section>'


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
    what = "Similarity" if considered.scale == "cosine" else "Probability"
    return (
        '<table class="sa-table"><caption class="sa-reader">Who was considered</caption><thead><tr>'
        f'<th scope="col">Expert</th><th scope="col" class="sa-wide">For</th><th scope="col">{what} '
        f'<span class="sa-wide">(line: threshold)</span></th><th scope="col">Confidence</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
