"""`selfadapt eval`."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
from pathlib import Path
from typing import Any, Literal

from selfadapt.verbs import show


def evaluate(
    tasks: str,
    dispatch: str | None = None,
    model: str | None = None,
    library: Path | None = None,
    model_args: tuple[str, ...] = (),
    device: str | None = None,
    dtype: str | None = None,
    quantization: Literal["nf4", "nf4-svd", "int8"] | None = None,
    include_path: Path | None = None,
    limit: float | None = None,
    samples: str | None = None,
    num_fewshot: int | None = None,
    fewshot_as_multiturn: tuple[str, ...] | None = None,
    apply_chat_template: bool = False,
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None,
    system_instruction: str | None = None,
    gen_kwargs: tuple[str, ...] = (),
    batch_size: str | None = None,
    use_cache: Path | None = None,
    output_path: Path | None = None,
    log_samples: bool = False,
    seed: int | None = None,
    confirm_run_unsafe_code: bool = False,
    json: bool = False,
) -> None:
    """Evaluate the base, an expert or a dispatcher on tasks of lm-eval-harness.

    Args:
        tasks: names, or patterns such as arc_*, with commas between them.
        dispatch: "none" for the plain base, as if not given; a dispatcher, the name of an expert, or a MIX.json.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository of the hub; by default those that come with the base.
        model_args: further arguments of the lm-eval model, key=value, such as revision=main,max_length=2048; or JSON.
        device: such as cuda:1 or cpu; by default the accelerator, if there is one.
        dtype: such as bfloat16; by default the checkpoint's own.
        quantization: load the base in four or eight bits, by bitsandbytes; nf4-svd keeps the largest singular triplets
            exact.
        include_path: a folder with task files of your own.
        limit: only the first so many documents of each task, or that share of them if less than 1.
        samples: only these documents, as JSON such as {"arc_easy": [0, 1, 5]}, or a file that holds it.
        num_fewshot: how many examples stand before each question; by default the task's own number.
        fewshot_as_multiturn: whether these examples are turns of the chat, as they are unless it is false.
        apply_chat_template: make every context a chat.
        chat_template_kwargs: arguments of the base's chat template, such as Qwen3's "enable_thinking False".
        system_instruction: what stands before every context, in chats as the system's message.
        gen_kwargs: arguments of transformers' generate, over the tasks' own, such as do_sample=true,temperature=0.7;
            or JSON.
        batch_size: requests at a time, 1 by default, or "auto".
        use_cache: where responses are kept for the next time: the beginning of a file's name.
        output_path: the folder for lm-eval's result files.
        log_samples: log every document and its answer, into --output-path or else with --json.
        seed: of all random choices; by default lm-eval's own.
        confirm_run_unsafe_code: let tasks run programs that the model writes, which lm-eval does unguarded.
        json: print lm-eval's result dictionary, with the mean mixture and the seconds of each pass, as JSON.
    """
    from experts.outside.errors import SEEDS, UserError, check_whole
    from experts.outside.files import check_writable

    check_lm_eval()
    check_numbers(limit, num_fewshot)
    if seed is not None:
        check_whole("--seed", seed, least=0, most=SEEDS)
    if limit is not None and samples is not None:
        raise UserError("--limit and --samples both say which documents; give only one of them")
    if chat_template_kwargs and not apply_chat_template:
        raise UserError("--chat-template-kwargs are for chats: give --apply-chat-template too")
    if log_samples and output_path is None and not json:
        raise UserError("--log-samples needs a place for the samples: give --output-path or --json")
    for file in (output_path, use_cache):
        if file is not None:
            check_writable(file.parent if file == use_cache or file.suffix == ".json" else file)

    # lm-eval and what it loads print to stdout at will.
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.utils import handle_non_serializable

        from selfadapt.harness import command_line, evaluation
        from selfadapt.harness.model_options import check_batch_size

        check_batch_size("--batch-size", batch_size or 1)
        own: dict[str, tuple[str, Any]] = {"pretrained": ("--model", model), "library": ("--library", library)}
        own |= {"dispatch": ("--dispatch", dispatch), "device": ("--device", device), "dtype": ("--dtype", dtype)}
        own |= {"quantization": ("--quantization", quantization), "batch_size": ("--batch-size", batch_size)}
        own |= {"chat_template_args": ("--chat-template-kwargs", chat_template_kwargs)}
        of_model = command_line.merged("--model-args", command_line.pairs("--model-args", model_args), own)
        results = evaluation.evaluate(
            task_names(tasks),
            of_model.pop("dispatch", None) or "none",
            of_model.pop("pretrained", None),
            of_model.pop("library", None),
            device=of_model.pop("device", None),
            model_args=of_model,
            include_path=include_path,
            output_path=output_path,
            seed=seed,
            limit=documents(limit),
            samples=None if samples is None else command_line.sample_numbers(samples),
            num_fewshot=num_fewshot,
            fewshot_as_multiturn=command_line.multiturn(fewshot_as_multiturn, apply_chat_template),
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction,
            gen_kwargs=command_line.pairs("--gen-kwargs", gen_kwargs) or None,
            batch_size=of_model.pop("batch_size", 1),
            use_cache=None if use_cache is None else str(use_cache),
            log_samples=log_samples,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
        if results is None:  # the first of several processes tells
            return
        text = evaluation.tables(results)
        document = json_format.loads(json_format.dumps(results, default=handle_non_serializable))
    show(document, json, text)


def check_lm_eval() -> None:
    """Raises UserError if lm-eval is not installed."""
    from experts.outside.errors import not_installed

    try:
        import lm_eval  # noqa: F401 (it is asked for before anything else)
    except ModuleNotFoundError as error:
        raise not_installed("evaluation", "lm-eval", "eval") from error


def check_numbers(limit: float | None, num_fewshot: int | None) -> None:
    """Raises UserError for a --limit or --num-fewshot that means nothing."""
    from experts.outside.errors import UserError, check_whole

    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit.is_integer())):
        raise UserError(f"--limit must be a whole number of documents, or a share between 0 and 1, not {limit:g}")
    if num_fewshot is not None:
        check_whole("--num-fewshot", num_fewshot, least=0)


def task_names(given: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in given.split(",") if name.strip()]


def documents(limit: float | None) -> float | None:
    """A limit as lm-eval takes it: whole, or a share."""
    return int(limit) if limit is not None and limit >= 1 else limit
