"""`selfadapt eval`."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
from pathlib import Path

from selfadapt.verbs import show


def evaluate(
    tasks: str,
    dispatch: str = "none",
    model: str | None = None,
    library: Path | None = None,
    include_path: Path | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    batch_size: str = "1",
    output_path: Path | None = None,
    log_samples: bool = False,
    seed: int | None = None,
    json: bool = False,
) -> None:
    """Evaluate the base, an expert or a dispatcher on tasks of lm-eval-harness.

    Args:
        tasks: names, or patterns such as arc_*, with commas between them.
        dispatch: "none" for the plain base, a dispatcher, the name of an expert, or a MIX.json.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts; by default those that come with the base.
        include_path: a folder with task files of your own.
        limit: only the first so many documents of each task, or that share of them if less than 1.
        num_fewshot: how many examples stand before each question; by default the task's own number.
        apply_chat_template: make every context a chat.
        batch_size: requests at a time, or "auto".
        output_path: the folder for lm-eval's result files.
        log_samples: log every document and its answer, into --output-path or else with --json.
        seed: of all random choices; by default lm-eval's own.
        json: print lm-eval's result dictionary, with the mean mixture and the seconds of each pass, as JSON.
    """
    from experts.outside.errors import SEEDS, UserError, check_whole
    from experts.outside.files import check_writable

    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise UserError('evaluation needs lm-eval; install it: pip install "selfadapt[eval]"') from error
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit.is_integer())):
        raise UserError(f"--limit must be a whole number of documents, or a share of them above 0, not {limit:g}")
    if num_fewshot is not None:
        check_whole("--num-fewshot", num_fewshot, least=0)
    if seed is not None:
        check_whole("--seed", seed, least=0, most=SEEDS)
    if log_samples and output_path is None and not json:
        raise UserError("--log-samples needs a place for the samples: give --output-path or --json")
    if output_path is not None:
        check_writable(output_path.parent if output_path.suffix == ".json" else output_path)

    # lm-eval and what it loads print to stdout at will.
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.utils import handle_non_serializable, make_table

        from dispatch import check_dispatcher
        from selfadapt.base_models import BUILT_IN
        from selfadapt.harness.lm import check_batch_size
        from selfadapt.harness.tasks import load_tasks
        from selfadapt.two_pass import find_library

        check_batch_size("--batch-size", batch_size)
        if dispatch != "none" or library:
            experts = find_library(model, library)
            check_dispatcher(dispatch, experts)
            model = model or experts.base
        model = model or BUILT_IN
        manager, loaded = load_tasks([name.strip() for name in tasks.split(",") if name.strip()], include_path)
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        tracker = EvaluationTracker(output_path=str(output_path)) if output_path else None
        results = lm_eval.simple_evaluate(
            model="selfadapt",
            model_args={
                "pretrained": model,
                "dispatch": dispatch,
                **({"library": str(library)} if library else {}),
            },
            tasks=loaded,
            task_manager=manager,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            batch_size=batch_size,
            log_samples=log_samples,
            evaluation_tracker=tracker,
            **({} if seed is None else dict.fromkeys(seeds, seed)),
        )
        if tracker is not None:
            samples = results.pop("samples", None)
            tracker.save_results_aggregated(results=results, samples=samples)
            for task_name, of_task in (samples or {}).items():
                tracker.save_results_samples(task_name=task_name, samples=of_task)
        tables = [make_table(results)] + ([make_table(results, "groups")] if "groups" in results else [])
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in results["mixture"]["weights"].items())
        tables.append(
            f"mixture: {weights or 'none'}; base alone {results['mixture']['abstained']:.0%}; "
            f"dispatch {results['seconds']['dispatch']:.1f} s, answers {results['seconds']['answer']:.1f} s"
        )
        document = json_format.loads(json_format.dumps(results, default=handle_non_serializable))
    show(document, json, "\n".join(tables))
