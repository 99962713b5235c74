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
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None,
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
        library: a folder of experts, or a repository of the hub; by default those that come with the base.
        include_path: a folder with task files of your own.
        limit: only the first so many documents of each task, or that share of them if less than 1.
        num_fewshot: how many examples stand before each question; by default the task's own number.
        apply_chat_template: make every context a chat.
        chat_template_kwargs: arguments of the base's chat template, such as Qwen3's "enable_thinking False".
        batch_size: requests at a time, or "auto".
        output_path: the folder for lm-eval's result files.
        log_samples: log every document and its answer, into --output-path or else with --json.
        seed: of all random choices; by default lm-eval's own.
        json: print lm-eval's result dictionary, with the mean mixture and the seconds of each pass, as JSON.
    """
    from experts.outside.errors import SEEDS, UserError, check_whole, not_installed
    from experts.outside.files import check_writable

    try:
        import lm_eval  # noqa: F401 (it is asked for before anything else)
    except ModuleNotFoundError as error:
        raise not_installed("evaluation", "lm-eval", "eval") from error
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit.is_integer())):
        raise UserError(f"--limit must be a whole number of documents, or a share of them above 0, not {limit:g}")
    if num_fewshot is not None:
        check_whole("--num-fewshot", num_fewshot, least=0)
    if chat_template_kwargs and not apply_chat_template:
        raise UserError("--chat-template-kwargs are of chats: give --apply-chat-template, too")
    if seed is not None:
        check_whole("--seed", seed, least=0, most=SEEDS)
    if log_samples and output_path is None and not json:
        raise UserError("--log-samples needs a place for the samples: give --output-path or --json")
    if output_path is not None:
        check_writable(output_path.parent if output_path.suffix == ".json" else output_path)

    # lm-eval and what it loads print to stdout at will.
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.utils import handle_non_serializable

        from selfadapt.harness import evaluation
        from selfadapt.harness.lm import check_batch_size

        check_batch_size("--batch-size", batch_size)
        results = evaluation.evaluate(
            [name.strip() for name in tasks.split(",") if name.strip()],
            dispatch,
            model,
            library,
            include_path=include_path,
            output_path=output_path,
            seed=seed,
            chat_template_kwargs=chat_template_kwargs,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            batch_size=batch_size,
            log_samples=log_samples,
        )
        text = evaluation.tables(results)
        document = json_format.loads(json_format.dumps(results, default=handle_non_serializable))
    show(document, json, text)
