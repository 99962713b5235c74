"""`selfadapt dispatch PROMPT…`, `--evaluate LABELLED.jsonl` and `--calibrate LABELLED.jsonl`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from selfadapt.verbs import show
from selfadapt.verbs.loading import FromOptions, Loading


def dispatch(
    prompts: Positional[tuple[str, ...]] = (),
    dispatch: str = "embedding",
    evaluate: Path | None = None,
    calibrate: Path | None = None,
    model: str | None = None,
    library: Path | None = None,
    base: FromOptions = Loading(),
    output: Path = Path("runs/dispatch"),
    json: bool = False,
) -> None:
    """Say which experts would answer; measure a dispatcher, or calibrate it, on labelled prompts.

    Labelled prompts are JSON Lines with `prompt` and `label`, an expert's name or "base".

    Args:
        prompts: one user turn each.
        dispatch: a dispatcher such as "embedding", an expert, or a MIX.json.
        evaluate: labelled prompts to measure the dispatcher on.
        calibrate: labelled prompts to calibrate "prompt" or "classifier" on; kept in the library.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        base: how the base is loaded.
        output: the folder for the report of --evaluate.
        json: print the mixtures, or the report, as JSON.
    """
    from experts.outside.errors import UserError
    from selfadapt.dispatch_report import Asked, ask_dispatcher

    if not prompts and evaluate is None and calibrate is None:
        raise UserError("there is no prompt to dispatch; give one or more, or --evaluate LABELLED.jsonl")
    if prompts and evaluate is not None:
        raise UserError(
            "--evaluate measures on labelled prompts; leave the others out, or dispatch them in another run"
        )
    done = ask_dispatcher(dispatch, Asked(prompts, calibrate, evaluate, output), model, library, **base.options())
    if done.report is not None:
        show(done.report, json, str(output / "report.md"))
    elif done.mixture is not None:
        mixture = done.mixture
        confidence = [None] * len(prompts) if mixture.confidence is None else mixture.confidence.tolist()
        document = [
            {"prompt": prompt, "mixture": mixture[row], "confidence": confidence[row]}
            for row, prompt in enumerate(prompts)
        ]
        show({"dispatch": dispatch, "prompts": document}, json, str(mixture))
    else:
        show({"calibration": str(done.calibration)}, json, str(done.calibration))
