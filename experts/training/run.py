"""A whole training run: from a base and a domain to an expert on disk, interruptible at any step.

While it runs, everything lives in `<output>.unfinished/` (the log, every validated expert, the last two
checkpoints). `<output>/` appears when the expert is complete, and not before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftType, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from experts.domains.base import Domain, Split, load_rows
from experts.library import write_expert
from experts.outside.chats import check_template
from experts.outside.errors import UserError
from experts.outside.files import atomic_folder
from experts.svf.fingerprint import fingerprint, sketch
from experts.training.callbacks import StepLog, StopAtNaN, StopOnInterrupt, Validation, validated_path
from experts.training.curve import plot_curve
from experts.training.evaluation import held_out_scores
from experts.training.folders import (
    at_work_in,
    check_folders,
    checkpoint_step,
    last_checkpoint,
    prepare_folders,
    remove_folder,
)
from experts.training.log import Log, best_step, out_of_patience
from experts.training.methods import check_targets
from experts.training.model_card import Card
from experts.training.objective import Diverged, Objective, check_prompts, check_step, check_tokenizer
from experts.training.processes import processes
from experts.training.progress import Progress
from experts.training.reinforce import Reinforce, make_trainer
from experts.training.statistics import Accuracy, accuracy, constant_answer
from experts.training.supervised import NextToken, make_next_token_trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves behind. Scores are in [0, 1], one a held-out problem of the test split."""

    expert: Path
    model: PeftModel
    """With the best expert active."""
    base_scores: list[float]
    expert_scores: list[float]
    constant: Accuracy
    """What always giving the most common right answer would score on the same problems."""
    train_seconds: float
    parameters: int
    best_step: int


class Interrupted(UserError):
    """Ctrl-C: the run stopped after a checkpoint and can go on."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}; `train` and `compare` go on with --resume, `demo` by itself")


def check_run(
    domain: Domain,
    options: Objective,
    output: Path,
    *,
    recipe: Mapping[str, Any],
    resume: bool = False,
    replace: bool = False,
) -> dict[Split, Dataset]:
    """Finds what is wrong with a run before its base is loaded, and leaves nothing behind.

    Returns:
        The rows of all splits.

    Raises:
        UserError: as `check_folders`, `load_rows` and `check_step` do.
    """
    check_folders(output, recipe, resume=resume, replace=replace)
    rows: dict[Split, Dataset] = {split: load_rows(domain, split) for split in get_args(Split)}
    check_step(options, len(rows["train"]))
    return rows


def train_expert(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    adapter: PeftConfig,
    options: Reinforce | NextToken,
    output: Path,
    *,
    base_name: str,
    recipe: Mapping[str, Any],
    test_size: int = 256,
    resume: bool = False,
    replace: bool = False,
    base_scores: list[float] | None = None,
    shard_base: bool = False,
    beside: Callable[[Path], None] = lambda folder: None,
) -> Result:
    """Trains, keeps the expert that was best on the validation split, scores it on the test split, writes it.

    Args:
        adapter: SVF makes an expert; what any other PEFT method makes is written, and judged, in the same way.
        output: the expert's folder; must not exist unless `replace`.
        base_name, recipe: what the model card says of where the expert comes from.
        test_size: held-out problems for the score in the card, answered by the base and by the expert.
        base_scores: the base's own scores on those problems, where they are known.
        shard_base: every process keeps a share of the base instead of all of it; it may be on the CPU until then.
        resume: go on from `<output>.unfinished/`, with the result of an uninterrupted run.
        beside: writes what else belongs into the expert's folder, before that appears.

    Raises:
        UserError: as `check_run`, `check_tokenizer`, `check_targets` and `check_prompts` do, or if the domain's
            rewards are none.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written to `output`.
    """
    rows = check_run(domain, options, output, recipe=recipe, resume=resume, replace=replace)
    sizes: dict[Split, int] = {"validation": options.validation_size, "test": test_size}
    held_out = {split: rows[split].select(range(min(size, len(rows[split])))) for split, size in sizes.items()}
    check_tokenizer(tokenizer)
    check_template(tokenizer)
    check_targets(adapter, base)
    sampled = [rows["train"]] if isinstance(options, Reinforce) else []
    check_prompts(base.config, tokenizer, [*sampled, *held_out.values()], options.max_new_tokens)
    with at_work_in(prepare_folders(output, recipe, resume=resume)) as unfinished:
        progress = Progress(domain.name)
        for split, size in sizes.items():
            if (there := len(held_out[split])) < size:
                progress.say(f"{domain.name}: the {split} split has {there} rows, fewer than the {size} asked for")
        log = Log(unfinished / "training_log.jsonl")
        base_fingerprint, base_sketch = fingerprint(base), sketch(base)  # before the base is shared out
        validation = Validation(tokenizer, domain, held_out["validation"], options, log, progress)
        model, diverged = _train(base, adapter, validation, unfinished, resume=resume, shard_base=shard_base)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        validations = log.validations()
        if diverged and max(validations, default=0) == 0:
            raise diverged  # no expert has been validated: there is nothing to keep
        best = best_step(validations)
        set_peft_model_state_dict(model, load_file(validated_path(unfinished, best)))

        test_rows = held_out["test"]

        def test_scores(who: str) -> list[float]:
            with progress.bar(f"{who} on {len(test_rows)} held-out problems", len(test_rows)) as advance:
                return held_out_scores(
                    model, tokenizer, domain, test_rows, max_new_tokens=options.max_new_tokens, on_batch=advance
                )

        if base_scores is None:
            with model.disable_adapter():
                base_scores = test_scores("base")
        expert_scores = test_scores("expert")
        constant = constant_answer(test_rows["answer"])
        train_seconds = sum(entry.get("seconds", 0.0) for entry in log.entries())
        card = Card(
            name=output.name,
            base=base_name,
            fingerprint=base_fingerprint,
            domain=domain.name,
            description=domain.description,
            recipe=dict(recipe),
            parameters=parameters,
            best_step=best,
            train_seconds=train_seconds,
            validations=validations,
            base_accuracy=accuracy(base_scores),
            expert_accuracy=accuracy(expert_scores),
            constant_accuracy=constant,
            peft_type=PeftType(adapter.peft_type).value,
            objective="REINFORCE" if isinstance(options, Reinforce) else "next-token prediction",
        )
        if processes().is_main_process:
            with atomic_folder(output) as folder:
                write_expert(folder, model, card, base_sketch)
                shutil.copyfile(log.path, folder / log.path.name)
                plot_curve(log.entries(), domain.name, folder / "curve.png")
                beside(folder)
            remove_folder(unfinished)
        processes().wait_for_everyone()
    if diverged:
        raise diverged
    return Result(output, model, base_scores, expert_scores, constant, train_seconds, parameters, best)


def _train(
    base: PreTrainedModel,
    adapter: PeftConfig,
    validation: Validation,
    unfinished: Path,
    *,
    resume: bool,
    shard_base: bool,
) -> tuple[PeftModel, Diverged | None]:
    """The model as the last step left it, and what stopped the run, if it was NaN.

    Raises:
        UserError: as `make_trainer` and `make_next_token_trainer` do.
        Interrupted: after Ctrl-C.
    """
    options, log, progress = validation.options, validation.log, validation.progress
    checkpoint = last_checkpoint(unfinished) if resume else None
    if resume:
        log.forget_after(checkpoint_step(checkpoint) if checkpoint else -1)
    interrupt = StopOnInterrupt(progress)
    callbacks = [StopAtNaN(), validation, StepLog(log, progress), interrupt]
    set_seed(options.seed)  # some adapters begin at random values
    make: Any = make_trainer if isinstance(options, Reinforce) else make_next_token_trainer
    domain, tokenizer = validation.domain, validation.tokenizer
    trainer: Trainer = make(base, tokenizer, domain, adapter, options, unfinished, callbacks, shard_base=shard_base)
    diverged: Diverged | None = None
    try:
        # The Trainer would make one step more than it should after a checkpoint of the last step.
        if checkpoint_step(checkpoint) < options.steps and not out_of_patience(log.validations(), options.patience):
            trainer.train(resume_from_checkpoint=checkpoint)
    except Diverged as error:
        diverged = error
    finally:
        progress.end()
    if interrupt.requested:
        raise Interrupted(trainer.state.global_step)
    return cast(PeftModel, trainer.model), diverged
