"""Trains an expert: from a base and a domain to an expert on disk and its held-out score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftType
from transformers import PreTrainedTokenizerBase, set_seed

from experts.domains.base import Domain, Split, is_judged, load_rows, own_reward, published_as
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint, sketch
from experts.training.card import Card, Origin, plot_curve, write_trained
from experts.training.evaluation import Problems, held_out_losses, held_out_scores
from experts.training.log import Progress
from experts.training.methods import check_targets
from experts.training.options import ExpertTraining, check_prompts, check_step, check_tokenizer
from experts.training.passthrough import check_built, refusals
from experts.training.reinforce import Reinforce
from experts.training.run import Result, Run
from experts.training.statistics import Accuracy, Loss, accuracy, constant_answer, loss, mcnemar, sign_test
from experts.training.supervised import NextToken, make_next_token_trainer, target_of
from experts.training.trainer import LoadedBase, RunTrainer, trainer_arguments
from experts.training.trl_glue import KeepCompletions, ReinforceTrainer, make_trainer
from experts.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class TrainedExpert(Result):
    """What the training of an expert leaves behind. Scores are in [0, 1], one per held-out problem of the test split.

    If nothing judges answers, they are the losses of the rows' own answers.
    """

    model: PeftModel
    """With the best expert active."""
    base_scores: list[float]
    expert_scores: list[float]
    constant: Accuracy
    """What always giving the most common right answer would score on the same problems."""
    own_reward: bool = False
    """Whether the scores are rewards from the user's own function: any numbers, not only in [0, 1]."""
    judged: bool = True
    """Whether the scores judge answers; otherwise they are losses."""

    @property
    def base_accuracy(self) -> Accuracy | Loss:
        return self._figure(self.base_scores)

    @property
    def expert_accuracy(self) -> Accuracy | Loss:
        return self._figure(self.expert_scores)

    def _figure(self, scores: list[float]) -> Accuracy | Loss:
        return accuracy(scores, rewards=self.own_reward) if self.judged else loss(scores)

    def comparison(self) -> dict[str, Any]:
        """Accuracies with 95 % Wilson intervals, and the exact McNemar p-value, on the same `n` problems.

        If the user's own reward function gives the scores, it has the mean rewards too; if nothing judges, it has
        losses and the p-value of a sign test.
        """
        base, expert = self.base_accuracy, self.expert_accuracy
        if isinstance(base, Loss) or isinstance(expert, Loss):
            p_value = sign_test(self.base_scores, self.expert_scores)
            return {"base_loss": base.value, "expert_loss": expert.value, "n": base.n, "p_value": p_value}
        rewards = {"base_reward": base.reward, "expert_reward": expert.reward} if self.own_reward else {}
        return {
            **rewards,
            "base_accuracy": base.value,
            "base_interval": base.interval,
            "expert_accuracy": expert.value,
            "expert_interval": expert.interval,
            "constant_accuracy": self.constant.value,
            "n": base.n,
            "p_value": mcnemar(self.base_scores, self.expert_scores),
        }

    def summary(self) -> str:
        """The comparison in one line."""
        if not self.judged:
            p_value = sign_test(self.base_scores, self.expert_scores)
            return (
                f"held-out rows: base {self.base_accuracy}, expert {self.expert_accuracy}, sign test p = {p_value:.2g}"
            )
        base, expert = self.base_accuracy, self.expert_accuracy
        p_value = mcnemar(self.base_scores, self.expert_scores)
        return (
            f"held-out problems: base {base}, expert {expert}, McNemar p = {p_value:.2g}; "
            f"always the most common answer {self.constant.value:.1%}"
        )


def check_expert_run(run: Run, domain: Domain, options: ExpertTraining) -> dict[Split, Dataset]:
    """Finds what is wrong with a run before its base is loaded, and leaves nothing behind.

    Returns:
        The rows of every split.

    Raises:
        UserError: as `Run.check`, `load_rows`, `check_step`, `configured` and `check_built` do.
    """
    run.check()
    if isinstance(options, Reinforce) and not is_judged(domain):
        raise UserError(
            f"{domain.name}: nothing says which answers are right, and reinforce needs that; give judged_by, or a "
            "reward"
        )
    if run.log_completions and not isinstance(options, Reinforce):
        raise UserError(
            "there are no completions to log: next-token prediction samples nothing; leave log_completions out"
        )
    rows: dict[Split, Dataset] = {split: load_rows(domain, split) for split in get_args(Split)}
    step = check_step(options, len(rows["train"]))
    if options.trainer:
        place = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        arguments = trainer_arguments(options, step, place, run.folder)
        check_built(options.configuration(**arguments), options.trainer)
    return rows


@dataclass(frozen=True)
class HeldOut:
    """The problems of the test split that the base and the finished expert are compared on."""

    size: int = 256
    base_scores: list[float] | None = None
    """The base's own scores, if they are known."""


def train_expert(
    base: LoadedBase,
    domain: Domain,
    adapter: PeftConfig,
    options: Reinforce | NextToken,
    run: Run,
    held_out: HeldOut = HeldOut(),
) -> TrainedExpert:
    """Trains an expert, keeps it as it was best on the validation split, scores it on the test split, and writes it.

    Args:
        adapter: SVF makes an expert; any other PEFT method's adapter is written and scored in the same way.

    Raises:
        UserError: as `check_expert_run`, `check_tokenizer`, `check_targets` and `check_prompts` do, or if the domain's
            rewards are not valid.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN, after writing the best expert until then.
    """
    rows = check_expert_run(run, domain, options)
    sizes: dict[Split, int] = {"validation": options.validation_size, "test": held_out.size}
    problems = {
        split: Problems(domain, rows[split].select(range(min(size, len(rows[split])))), options.max_new_tokens)
        for split, size in sizes.items()
    }
    check_tokenizer(base.tokenizer)
    check_targets(adapter, base.model)
    read = [rows["train"]] if isinstance(options, Reinforce) else []
    read += [own.rows for own in problems.values()]
    check_prompts(base.model.config, base.tokenizer, read, options.max_new_tokens)
    with run.at_work():
        progress = Progress(domain.name)
        for split, size in sizes.items():
            if (there := len(problems[split].rows)) < size:
                progress.say(f"{domain.name}: the {split} split has {there} rows, fewer than the {size} asked for")
        # Before the base is sharded.
        origin = Origin(base.name, fingerprint(base.model), sketch(base.model), domain.description, domain.name)
        set_seed(options.seed)  # some adapters start from random values
        make: Any = make_trainer if isinstance(options, Reinforce) else make_next_token_trainer
        with refusals("the trainer", options.trainer):
            trainer: RunTrainer = make(base, domain, adapter, options, run.folder)
        if isinstance(trainer, ReinforceTrainer) and run.log_completions:
            trainer.add_callback(KeepCompletions(trainer, run.completions, progress))

        def validate(model: PeftModel) -> Accuracy | Loss:
            if not is_judged(domain):
                return loss(_losses(model, base.tokenizer, problems["validation"]))
            scores = held_out_scores(model, base.tokenizer, problems["validation"])
            return accuracy(scores, rewards=own_reward(domain) is not None)

        better: Any = "higher" if is_judged(domain) else "lower"
        validation = Validation(validate, better, options.validate_every, options.patience)
        trained = run.train(trainer, progress, validation)
        model, known = cast(PeftModel, trainer.model), held_out.base_scores
        result = _compare(trained, model, base.tokenizer, problems["test"], known, progress)
        card = _card(result, run, origin, adapter, options, published_as(domain))

        def write(folder: Path) -> None:
            write_trained(folder, result.model, origin, card)
            plot_curve(run.log.entries(), domain.name, folder / "curve.png")

        run.finish(result, write)
    return result


def _compare(
    trained: Result,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    known: list[float] | None,
    progress: Progress,
) -> TrainedExpert:
    """Scores the expert and, if its scores are not known yet, the base."""

    def scores(who: str) -> list[float]:
        number = len(problems.rows)
        with progress.bar(f"{who} on {number} held-out problems", number) as advance:
            held_out: Any = held_out_scores if is_judged(problems.domain) else _losses
            return held_out(model, tokenizer, problems, on_batch=advance)

    if known is None:
        with model.disable_adapter():
            known = scores("base")
    return TrainedExpert(
        **vars(trained),
        model=model,
        base_scores=known,
        expert_scores=scores("expert"),
        constant=constant_answer(problems.rows["answer"]),
        own_reward=own_reward(problems.domain) is not None,
        judged=is_judged(problems.domain),
    )


def _losses(model: PeftModel, tokenizer: Any, problems: Problems, **options: Any) -> list[float]:
    return held_out_losses(model, tokenizer, problems.rows, target_of(problems.rows), **options)


def _card(
    result: TrainedExpert,
    run: Run,
    origin: Origin,
    adapter: PeftConfig,
    options: Reinforce | NextToken,
    dataset: str | None,
) -> Card:
    return Card(
        name=run.output.name,
        origin=origin,
        recipe=dict(run.recipe),
        parameters=result.parameters,
        best_step=result.best_step,
        train_seconds=result.train_seconds,
        validations=run.log.validations(),
        base_accuracy=result.base_accuracy,
        expert_accuracy=result.expert_accuracy,
        constant_accuracy=result.constant,
        peft_type=PeftType(adapter.peft_type).value,
        objective="REINFORCE" if isinstance(options, Reinforce) else "next-token prediction",
        dataset=dataset,
    )
