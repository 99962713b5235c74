"""The tab Training: the runs in a folder, and one that is still running as it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dispatch.base import question
from experts.outside.errors import UserError
from experts.outside.reading import read_json
from experts.training.log import Log
from selfadapt.page.controls import status_line
from selfadapt.page.curve import training_curve
from selfadapt.page.failures import Shown, said
from selfadapt.page.looks import note

LOG = "training_log.jsonl"
UNFINISHED = ".unfinished"
SAMPLES = 4
END = 1 << 16
"""Bytes at the end of a log in which its last samples are looked for."""
SECONDS = 2.0
"""Between two looks at a run."""
INTRODUCTION = """\
How does an expert come about? The model **tries** answers to problems of one kind, each **earns a reward**, and the
knobs are turned so that answers that earned more become likelier. `selfadapt train RECIPE --log-completions` starts
one; with `--output runs/NAME` it appears here, and the picture grows while it runs.
"""


def trainings_tab(folder: Path) -> gr.Timer:
    """The tab, and the timer that keeps it up to date while it is looked at."""
    gr.Markdown(INTRODUCTION)
    found = runs_in(folder)
    one = gr.Dropdown([*found], value=next(iter(found), None), label="Run", elem_id="trainings-one")
    status = status_line("trainings-status")
    drawn = gr.HTML(elem_id="trainings-picture")
    timer = gr.Timer(SECONDS, active=False)

    def look(name: str | None) -> Iterator[Shown]:
        found = runs_in(folder)
        choice = gr.Dropdown(choices=[*found], value=name if name in found else next(iter(found), None))
        if not found:
            yield {one: choice, status: note(f"There are no runs in {folder} yet."), drawn: ""}
            return
        chosen = name or next(iter(found))
        if chosen not in found:
            raise UserError(f"the run {chosen[:60]!r} is no longer there; choose another")
        yield {one: choice, status: note(_state(found[chosen])), drawn: _shown(found[chosen], chosen)}

    action = said(status, look)
    outputs = [one, status, drawn]
    timer.tick(action, [one], outputs, show_progress="hidden", api_visibility="private")
    one.input(action, [one], outputs, show_progress="hidden", api_name="training")
    return timer


def runs_in(folder: Path) -> dict[str, Path]:
    """Name → folder of each run, the newest first."""
    logs = [log for depth in range(1, 4) for log in folder.glob("*/" * depth + LOG)]
    logs.sort(key=lambda log: -log.stat().st_mtime)
    return {str(log.parent.relative_to(folder)).removesuffix(UNFINISHED): log.parent for log in logs}


def _state(run: Path) -> str:
    entries = Log(run / LOG).entries()
    last: Mapping[str, Any] = next((entry for entry in reversed(entries) if "seconds" in entry), {})
    step, steps = last.get("step", 0), _steps(run)
    of = f" of {steps}" if steps else ""
    reward = f", reward {last['reward']:+.2f}" if last.get("reward") is not None else ""
    state = "Not complete" if run.name.endswith(UNFINISHED) else "Complete"
    return f"{state}: step {step}{of}{reward}."


def _steps(run: Path) -> int | None:
    """How many steps the run's recipe has, if it is beside the log."""
    try:
        return int(read_json(run / "recipe.json")["training"]["steps"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _shown(run: Path, name: str) -> str:
    drawn = training_curve(Log(run / LOG).entries(), name)
    rows = "".join(
        f"<tr><td>{escape(question(entry['prompt']))}</td><td>{escape(entry['completion'])}</td>"
        f'<td class="sa-number">{_reward(entry["reward"])}</td></tr>'
        for entry in last_samples(run / "completions.jsonl")
    )
    table = (
        '<h3>What it tried last</h3><div class="sa-scroll"><table class="sa-table"><thead><tr><th '
        'scope="col">Prompt</th><th scope="col">Answer</th><th scope="col">Reward</th></tr></thead><tbody>'
        f"{rows}</tbody></table></div>"
    )
    without = '<p class="sa-quiet">Its samples were not kept: <code>--log-completions</code> keeps them.</p>'
    return f'<section class="sa-card">{drawn}{table if rows else without}</section>'


def last_samples(path: Path) -> list[dict[str, Any]]:
    """The last lines of a log that may be long, and may be growing."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END))
        lines = file.read().decode("utf-8", "replace").split("\n")
    whole = lines[1 if path.stat().st_size > END else 0 : -1]  # the last one is being written, or empty
    return [json.loads(line) for line in whole[-SAMPLES:]]


def _reward(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:+.2f}"
