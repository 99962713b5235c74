"""`selfadapt compare`: runs the cells of an experiment, alone or beside other processes, each cell all or nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import cast

from datasets import Dataset
from filelock import FileLock, Timeout
from rich.console import Console

from dispatch.few_shot import search
from dispatch.text_to_lora import PREFIX as WRITTEN
from experts.domains import check_domain
from experts.domains.base import scores_of
from experts.engine import NativeEngine
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.outside.files import check_writable
from experts.svf.fingerprint import fingerprint
from experts.training.evaluation import held_out_scores
from experts.training.folders import unfinished_folder
from experts.training.log import Log
from experts.training.processes import processes
from experts.training.run import Interrupted
from experts.training.statistics import accuracy, constant_answer
from selfadapt.base_models import load_base
from selfadapt.grid.experiment import EXAMPLES, FEW_SHOT, Cell, Evaluation, Experiment
from selfadapt.grid.memory import PeakMemory
from selfadapt.grid.results import BASE, Line, add_results, read_results
from selfadapt.recipes import train_recipe
from selfadapt.two_pass import SelfAdaptiveModel

POLL = 2.0
"""Seconds between two looks at the cells that other processes are working on."""


def compare(experiment: Experiment, output: Path, *, resume: bool, only: str | None = None) -> list[Line]:
    """Runs the cells of the grid that have no results yet; returns the lines of all of them, failures included.

    Any number of processes may share `output`: a lock a cell keeps them apart, and each returns when all is done.

    Args:
        output: gets `results.jsonl`, and in `cells/` what each cell trained.
        resume: whether there may be results already.
        only: a pattern of cell names, such as `svf-*/sums/*`.

    Raises:
        UserError: for results of another experiment, where nothing matches `only`, or where a domain's answers are
            programs that cannot be run here.
        Interrupted: after Ctrl-C, once the running cell has a checkpoint.
    """
    if processes().num_processes > 1:
        raise UserError(
            "a grid is shared by processes of its own, not by those of one training: start it several times"
        )
    results = output / "results.jsonl"
    if results.exists() and not resume:
        raise UserError(f"{results} exists already; go on with --resume, or choose another --output")
    cells = {cell.name: cell for cell in experiment.cells if only is None or fnmatch(cell.name, only)}
    if not cells:
        names = ", ".join(cell.name for cell in experiment.cells)
        raise UserError(f"no cell matches {only!r}; the cells are {names}")
    for name in {name for cell in cells.values() for name in cell.evaluated_on}:
        check_domain(experiment.evaluations[name].domain)
    check_writable(output / "cells")
    console = Console(stderr=True)
    retry = {line.cell for line in _own_lines(results, cells) if line.error}
    while True:
        lines = _own_lines(results, cells)
        # What is asked for by name does not wait for the choice of its learning rate.
        needs = {name: True if only else experiment.needs(cell, lines) for name, cell in cells.items()}
        open_cells = [
            cell for name, cell in cells.items() if needs[name] is not False and not _settled(cell, lines, retry)
        ]
        if not open_cells:
            return lines
        begun = False
        for cell in (cell for cell in open_cells if needs[cell.name]):
            folder = output / "cells" / cell.name.replace("/", "--")
            try:
                with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
                    lines = _own_lines(results, cells)
                    if _settled(cell, lines, retry):
                        continue
                    begun = True
                    done = sum(_settled(each, lines, retry) for each in cells.values())
                    console.print(f"{cell.name}: {done} of at most {len(cells)} cells are done", highlight=False)
                    add_results(results, run_cell(cell, experiment, folder, read_results(results)))
                    retry.discard(cell.name)
            except Timeout:
                continue  # another process has it
        if not begun:
            time.sleep(POLL)


def run_cell(cell: Cell, experiment: Experiment, folder: Path, lines: Sequence[Line]) -> list[Line]:
    """Trains and evaluates one cell; a failure is a result too, of one line that says what happened.

    Args:
        folder: where what it trains is kept.
        lines: the results so far.
    """
    line = Line(
        method=cell.method,
        trained_on=cell.trained_on,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        evaluated_on=cell.evaluated_on[0],
        settings=cell.settings,
        model=experiment.model,
        reference=cell.reference,
    )
    try:
        if cell.method == BASE:
            return _evaluate_base(line, experiment)
        if cell.recipe is None:
            return _evaluate_dispatched(line, experiment)
        return _train(cell, line, experiment, folder, _base_scores(cell, experiment, lines))
    except Interrupted:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        line = replace(line, error=f"{type(error).__name__}: {said}")
        Console(stderr=True).print(f"{cell.name} failed: {line.error}", highlight=False)
        return [line]


def _evaluate_base(line: Line, experiment: Experiment) -> list[Line]:
    base, tokenizer = load_base(experiment.model, dtype=experiment.dtype)
    evaluation = experiment.evaluations[line.evaluated_on]
    rows = _test_rows(evaluation)
    scores = held_out_scores(base, tokenizer, evaluation.domain, rows, max_new_tokens=evaluation.max_new_tokens)
    return [_scored(replace(line, fingerprint=fingerprint(base)), rows, scores)]


def _evaluate_dispatched(line: Line, experiment: Experiment) -> list[Line]:
    """The answers of a library's experts, as a dispatcher, a few-shot search, or an expert's name mixes them."""
    library = experiment.library
    assert library is not None
    evaluation = experiment.evaluations[line.evaluated_on]
    rows = _test_rows(evaluation)
    few_shot = line.method == FEW_SHOT
    adaptive = SelfAdaptiveModel.from_pretrained(
        experiment.model, library, "none" if few_shot else line.method, dtype=experiment.dtype
    )
    if few_shot:
        start = time.perf_counter()
        mixture = _search(adaptive, library.names, evaluation).expand(len(rows))
        line = replace(line, train_seconds=round(time.perf_counter() - start, 1))
    else:
        mixture = adaptive.dispatch(list(rows["prompt"]))
    scores = held_out_scores(
        adaptive.model,
        adaptive.tokenizer,
        evaluation.domain,
        rows,
        max_new_tokens=evaluation.max_new_tokens,
        mixture=mixture,
    )
    weights: dict[str, float] = {}
    for name, weight in zip(mixture.names, mixture.weights.mean(0).tolist(), strict=True):
        name = "written" if name.startswith(WRITTEN) else name
        weights[name] = weights.get(name, 0.0) + weight
    line = replace(line, mixture=weights, fingerprint=fingerprint(adaptive.model))
    return [_scored(line, rows, scores)]


def _search(adaptive: SelfAdaptiveModel, names: Sequence[str], evaluation: Evaluation) -> Mixture:
    """The mixture that suits the first training rows of a domain."""
    train = evaluation.domain.load("train")
    return search(
        cast(NativeEngine, adaptive.engine),
        names,
        list(train.select(range(min(EXAMPLES, len(train))))),
        partial(scores_of, evaluation.domain),
        evaluation.search,
    ).mixture


def _base_scores(cell: Cell, experiment: Experiment, lines: Sequence[Line]) -> list[float] | None:
    """The base's scores on the items of the trained domain, if it has answered them already."""
    base = next(each for each in experiment.cells if each.name == f"{BASE}/{cell.trained_on}")
    known = [line for line in lines if (line.cell, line.settings, line.error) == (base.name, base.settings, None)]
    return [float(digit) for digit in known[0].scores] if known else None


def _train(cell: Cell, line: Line, experiment: Experiment, folder: Path, base_scores: list[float] | None) -> list[Line]:
    assert cell.recipe is not None
    with PeakMemory() as memory:
        base, tokenizer = load_base(experiment.model, dtype=experiment.dtype)
        base_fingerprint = fingerprint(base)
        going_on = unfinished_folder(folder).exists()
        result = train_recipe(
            cell.recipe, base, tokenizer, folder, resume=going_on, replace=True, base_scores=base_scores
        )
    document = cell.recipe.to_dict()
    validation = Log(folder / "training_log.jsonl").accuracies()[result.best_step]
    line = replace(
        line,
        adapter=document["adapt"].get("method", "svf"),
        objective=document["training"].get("objective", "reinforce"),
        fingerprint=base_fingerprint,
        validation_right=validation.right,
        validation_n=validation.n,
        best_step=result.best_step,
        parameters=result.parameters,
        train_seconds=round(result.train_seconds, 1),
        peak_memory=memory.mib,
    )
    lines = []
    for name in cell.evaluated_on:
        evaluation = experiment.evaluations[name]
        rows = _test_rows(evaluation)
        scores = (
            result.expert_scores  # of the same rows
            if name == cell.trained_on
            else held_out_scores(
                result.model, tokenizer, evaluation.domain, rows, max_new_tokens=evaluation.max_new_tokens
            )
        )
        lines.append(_scored(replace(line, evaluated_on=name), rows, scores))
    return lines


def _test_rows(evaluation: Evaluation) -> Dataset:
    rows = evaluation.domain.load("test")
    return rows.select(range(min(evaluation.size, len(rows))))


def _scored(line: Line, rows: Dataset, scores: Sequence[float]) -> Line:
    result = accuracy(scores)
    items = hashlib.sha256(repr([rows["id"][:], rows["prompt"][:]]).encode()).hexdigest()[:12]
    return replace(
        line,
        scores="".join("1" if score >= 1 else "0" for score in scores),
        items=items,
        right=result.right,
        n=result.n,
        constant=constant_answer(rows["answer"]).right,
    )


def _own_lines(results: Path, cells: dict[str, Cell]) -> list[Line]:
    """The lines of these cells; raises UserError, if one has come from other settings."""
    lines = [line for line in read_results(results) if line.cell in cells]
    for line in lines:
        if line.settings != cells[line.cell].settings:
            raise UserError(
                f"{results} has results of {line.cell} with other settings than the experiment's; choose another "
                "--output, or remove those lines"
            )
    return lines


def _settled(cell: Cell, lines: Sequence[Line], retry: set[str]) -> bool:
    """Whether a cell has all its results, or has failed and is not to be tried again."""
    own = [line for line in lines if line.cell == cell.name]
    if any(line.error for line in own):
        return cell.name not in retry
    return {line.evaluated_on for line in own} == set(cell.evaluated_on)
