"""A whole evaluation by lm-eval, from its tasks to its files: what `selfadapt eval` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table

from dispatch import check_dispatcher
from experts.engine import Sampling
from experts.outside.errors import UserError, unknown
from experts.training.processes import processes
from selfadapt.base_models import BUILT_IN
from selfadapt.harness.lm import PATIENCE
from selfadapt.harness.tasks import check_examples, load_tasks
from selfadapt.two_pass import find_library

SEEDS_OF_LM_EVAL = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def evaluate(
    tasks: Sequence[str],
    dispatch: str = "none",
    model: str | None = None,
    library: Path | None = None,
    *,
    include_path: Path | None = None,
    output_path: Path | None = None,
    seed: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """lm-eval's result dictionary, with the mean mixture and the seconds of each pass.

    Several processes (`torchrun`) share the documents; all but the first get None.

    Args:
        tasks: names or patterns.
        dispatch, model, library: as `SelfAdaptiveModel.from_pretrained` takes them.
        include_path: a folder with task files of your own.
        output_path: the folder for lm-eval's result files, which then hold the samples, too.
        seed: of all random choices; None for lm-eval's own.
        chat_template_kwargs: what lm-eval calls a model's `chat_template_args`.
        model_args: further arguments of the lm-eval model (`SelfAdaptiveLM`).
        options: for `lm_eval.simple_evaluate`, such as `samples`, `gen_kwargs` and `confirm_run_unsafe_code`.

    Raises:
        UserError: as `load_tasks`, `check_examples` and `check_dispatcher` do, if `samples` names documents that are
            not there, or if a task has fewer documents than there are processes.
    """
    if dispatch != "none" or library:
        experts = find_library(model, library)
        check_dispatcher(dispatch, experts)
        model = model or experts.base
    manager, loaded = load_tasks(tasks, include_path, options.get("confirm_run_unsafe_code", False))
    _check_samples(options.get("samples") or {}, loaded)
    _check_shares(options.get("limit"), options.get("samples") or {}, loaded)
    check_examples(_named(loaded).values(), options.get("num_fewshot"))
    tracker = EvaluationTracker(output_path=str(output_path)) if output_path else None
    arguments: dict[str, Any] = {**(model_args or {}), "pretrained": model or BUILT_IN, "dispatch": dispatch}
    if library:
        arguments["library"] = str(library)
    if chat_template_kwargs:
        arguments["chat_template_args"] = dict(chat_template_kwargs)
    _check_generation(options.get("gen_kwargs"))
    results = lm_eval.simple_evaluate(
        model="selfadapt",
        model_args=arguments,
        tasks=loaded,
        task_manager=manager,
        evaluation_tracker=tracker,
        **({} if seed is None else dict.fromkeys(SEEDS_OF_LM_EVAL, seed)),
        **options,
    )
    if tracker is not None and results is not None:
        samples = results.pop("samples", None)
        tracker.save_results_aggregated(results=results, samples=samples)
        for task_name, of_task in (samples or {}).items():
            tracker.save_results_samples(task_name=task_name, samples=of_task)
    return results


def _check_generation(given: Any) -> None:
    """Raises UserError if a number among the arguments of generation is out of range."""
    if isinstance(given, Mapping):
        numbers = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        try:
            numbered = {name: given[name] for name in numbers if given.get(name) is not None}
            if not numbered.get("temperature"):  # `do_sample`, or the task, says whether tokens are drawn
                numbered["temperature"] = 1.0
            Sampling(**numbered)
        except UserError as error:
            raise UserError(f"gen_kwargs: {error}") from error


def _check_samples(samples: Mapping[str, Sequence[int]], loaded: Sequence[Task | Group]) -> None:
    """Raises UserError for tasks and documents that are not there; lm-eval would pass over such a task."""
    named = _named(loaded)
    for name, numbers in samples.items():
        if name not in named:
            raise unknown("task in the samples", name, named)
        if (last := max(numbers)) >= (length := len(named[name].eval_docs)):
            raise UserError(
                f"the samples ask for document {last} of the task {name!r}, but its last one is {length - 1}"
            )


def _check_shares(limit: float | None, samples: Mapping[str, Sequence[int]], loaded: Sequence[Task | Group]) -> None:
    """Raises UserError if a task has fewer documents than there are processes: lm-eval would fail in one without."""
    count = processes(PATIENCE).num_processes
    for name, task in _named(loaded).items() if count > 1 else ():
        there = len(task.eval_docs)
        documents = len(samples.get(name, ())) or min(get_sample_size(task, limit) or there, there)
        if documents < count:
            raise UserError(f"the task {name!r} has {documents} documents for {count} processes; start fewer processes")


def _named(loaded: Sequence[Task | Group]) -> dict[str, Task]:
    groups = [each.get_all_tasks() if isinstance(each, Group) else [each] for each in loaded]
    return {str(task.task_name): task for tasks in groups for task in tasks}


def tables(results: dict[str, Any]) -> str:
    """The results of `evaluate` as lm-eval's tables and a line on the mixture."""
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in results["mixture"]["weights"].items())
    return "\n".join(
        [
            make_table(results),
            *([make_table(results, "groups")] if "groups" in results else []),
            f"mixture: {weights or 'none'}; base alone {results['mixture']['abstained']:.0%}; "
            f"dispatch {results['seconds']['dispatch']:.1f} s, answers {results['seconds']['answer']:.1f} s",
        ]
    )
