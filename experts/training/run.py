"""A whole training run: from a base and a domain to an expert on disk, interruptible at any step.

While it runs, everything lives in `<output>.unfinished/` (the log, every validated expert, the last two
checkpoints). `<output>/` appears when the expert is complete, and not before.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from experts.domains.base import Domain
from experts.errors import UserError
from experts.evaluation import Accuracy, accuracy, held_out_scores
from experts.files import atomic_file, atomic_folder, check_writable
from experts.fingerprint import fingerprint
from experts.library import write_expert
from experts.model_card import Card
from experts.training.curve import plot_curve
from experts.training.progress import Progress
from experts.training.reinforce import Diverged, Reinforce, make_trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves behind. Scores are in [0, 1], one a held-out problem of the test split."""

    expert: Path
    model: PeftModel
    """With the best expert active."""
    base_scores: list[float]
    expert_scores: list[float]
    train_seconds: float
    parameters: int
    best_step: int


class Interrupted(UserError):
    """Ctrl-C: the run stopped after a checkpoint and can go on."""


class Log:
    """`training_log.jsonl`: one line a step and one a validation; ids and numbers, never the text of a data set."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def validations(self) -> dict[int, Accuracy]:
        """Step → accuracy on the validation split."""
        return {e["step"]: Accuracy(e["right"], e["n"]) for e in self.entries() if "right" in e}

    def forget_after(self, step: int) -> None:
        """Drops what an interrupted run did beyond its last checkpoint; it will be done again, identically."""
        kept = [json.dumps(entry) + "\n" for entry in self.entries() if entry["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


class Validation(TrainerCallback):
    """Every N steps: greedy answers on held-out prompts, the expert kept, and a stop when it no longer improves."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        domain: Domain,
        options: Reinforce,
        log: Log,
        progress: Progress,
    ) -> None:
        rows = domain.load("validation")
        self.rows = rows.select(range(min(options.validation_size, len(rows))))
        self.tokenizer, self.domain, self.options, self.log, self.progress = tokenizer, domain, options, log, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.validate(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.options.validate_every and state.global_step < self.options.steps:
            return
        self.validate(state.global_step, model)
        patience = self.options.patience
        if patience is not None:
            validations = self.log.validations()
            since_best = [step for step in validations if step > best_step(validations)]
            control.should_training_stop = len(since_best) >= patience
            control.should_save = True

    def validate(self, step: int, model: PeftModel) -> None:
        scores = held_out_scores(
            model, self.tokenizer, self.domain, self.rows, max_new_tokens=self.options.max_new_tokens
        )
        state = PartialState()
        if state.is_main_process:
            result = accuracy(scores)
            save_file(get_peft_model_state_dict(model), _validated(self.log.path.parent, step))
            self.log.append(step=step, right=result.right, n=result.n)
            self.progress.validated(step, result)
        state.wait_for_everyone()


class StepLog(TrainerCallback):
    """Carries each step's figures to the log and the display."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress
        self.tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens = state.num_input_tokens_seen
        self.progress.begin(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "reward" not in logs:
            return
        seconds = logs["step_time"]
        entry = {
            "step": state.global_step,
            "reward": logs["reward"],
            "accuracy": logs["accuracy"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "entropy": logs["entropy"],
            "completion_tokens": logs["completions/mean_length"],
            "truncated": logs["completions/clipped_ratio"],
            "tokens_per_second": (logs["num_tokens"] - self.tokens) / seconds,
            "seconds": seconds,
        }
        if "kl" in logs:
            entry["kl"] = logs["kl"]
        self.tokens = logs["num_tokens"]
        self.log.append(**{key: round(v, 6) if isinstance(v, float) else v for key, v in entry.items()})
        self.progress.stepped(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.end()


class StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C lets the step finish and writes a checkpoint; the second one stops at once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.requested = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._previous = signal.signal(signal.SIGINT, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True
        self.progress.say("finishing this step, then stopping; press Ctrl-C again to stop at once")
        signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.signal(signal.SIGINT, self._previous)


def best_step(validations: Mapping[int, Accuracy]) -> int:
    """The step with the highest validation accuracy, the earliest of equals. The untrained step 0 does not count."""
    return max((step for step in validations if step), key=lambda step: (validations[step].value, -step))


def train_expert(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    adapter: PeftConfig,
    options: Reinforce,
    output: Path,
    *,
    base_name: str,
    recipe: Mapping[str, Any],
    test_size: int = 256,
    resume: bool = False,
    replace: bool = False,
) -> Result:
    """Trains, keeps the expert that was best on the validation split, scores it on the test split, writes it.

    Args:
        output: the expert's folder; must not exist unless `replace`.
        base_name, recipe: what the model card says of where the expert comes from.
        test_size: held-out problems for the score in the card, answered by the base and by the expert.
        resume: go on from `<output>.unfinished/`, with the result of an uninterrupted run.

    Raises:
        UserError: if the output exists, cannot be written, or there is nothing to resume.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written to `output`.
    """
    unfinished = unfinished_folder(output)
    log = Log(unfinished / "training_log.jsonl")
    _prepare_folders(output, unfinished, resume=resume, replace=replace)
    checkpoint = get_last_checkpoint(str(unfinished)) if resume else None
    if resume:
        log.forget_after(int(checkpoint.rpartition("-")[2]) if checkpoint else -1)

    base_fingerprint = fingerprint(base)
    progress = Progress(domain.name)
    interrupt = StopOnInterrupt(progress)
    trainer = make_trainer(
        base,
        tokenizer,
        domain,
        adapter,
        options,
        unfinished,
        [Validation(tokenizer, domain, options, log, progress), StepLog(log, progress), interrupt],
    )
    model = cast(PeftModel, trainer.model)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    diverged: Diverged | None = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Diverged as error:
        diverged = error
    finally:
        progress.end()
    if interrupt.requested:
        raise Interrupted(f"stopped after step {trainer.state.global_step}; add --resume to go on from there")

    validations = log.validations()
    if diverged and max(validations, default=0) == 0:
        raise diverged  # no expert has been validated: there is nothing to keep
    best = best_step(validations)
    set_peft_model_state_dict(model, load_file(_validated(unfinished, best)))

    test_rows = domain.load("test")
    test_rows = test_rows.select(range(min(test_size, len(test_rows))))
    scores: dict[str, list[float]] = {}
    for who in ("base", "expert"):
        with progress.bar(f"{who} on {len(test_rows)} held-out problems", len(test_rows)) as advance:
            answer = lambda: held_out_scores(  # noqa: E731
                model, tokenizer, domain, test_rows, max_new_tokens=options.max_new_tokens, on_batch=advance
            )
            if who == "base":
                with model.disable_adapter():
                    scores[who] = answer()
            else:
                scores[who] = answer()

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
        base_accuracy=accuracy(scores["base"]),
        expert_accuracy=accuracy(scores["expert"]),
    )
    if PartialState().is_main_process:
        with atomic_folder(output) as folder:
            write_expert(folder, model, card)
            shutil.copyfile(log.path, folder / log.path.name)
            plot_curve(log.entries(), domain.name, folder / "curve.png")
        shutil.rmtree(unfinished)
    PartialState().wait_for_everyone()
    if diverged:
        raise diverged
    return Result(output, model, scores["base"], scores["expert"], train_seconds, parameters, best)


def unfinished_folder(output: Path) -> Path:
    """Where the run that will end in `output` keeps itself until then."""
    return output.with_name(output.name + ".unfinished")


def _validated(unfinished: Path, step: int) -> Path:
    return unfinished / f"validated-{step}.safetensors"


def _prepare_folders(output: Path, unfinished: Path, *, resume: bool, replace: bool) -> None:
    state = PartialState()
    if output.exists() and any(output.iterdir()) and not replace:
        raise UserError(f"{output} exists already; choose another --output, or remove it first")
    if resume and not unfinished.exists():
        raise UserError(f"there is nothing to resume: {unfinished} does not exist")
    if not resume and unfinished.exists() and not replace:
        raise UserError(f"{unfinished} holds an unfinished run; go on with --resume, or remove it to start again")
    if state.is_main_process:
        if not resume and unfinished.exists():
            shutil.rmtree(unfinished)
        check_writable(unfinished)
    state.wait_for_everyone()
