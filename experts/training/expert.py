"""The training of an expert: from a base and a domain to an expert on disk and its held-out score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from experts.domains.base import Domain, Split, load_rows
from experts.outside.chats import check_template
from experts.svf.fingerprint import fingerprint, sketch
from experts.training.callbacks import Validation
from experts.training.card import Card, Origin, plot_curve, write_trained
from experts.training.evaluation import held_out_scores
from experts.training.methods import check_targets
from experts.training.options import ExpertTraining, check_prompts, check_step, check_tokenizer
from experts.training.progress import Progress
from experts.training.reinforce import Reinforce
from experts.training.run import Result, Run
from experts.training.statistics import Accuracy, accuracy, constant_answer, mcnemar
from experts.training.supervised import NextToken, make_next_token_trainer
from experts.training.trl_glue import make_trainer


@dataclass(frozen=True, kw_only=True)
class TrainedExpert(Result):
    """What the training of an expert leaves behind. Scores are in [0, 1], one a held-out problem of the test split."""

    model: PeftModel
    """With the best expert active."""
    base_scores: list[float]
    expert_scores: list[float]
    constant: Accuracy
    """What always giving the most common right answer would score on the same problems."""

    def comparison(self) -> dict[str, Any]:
        """Accuracies with 95 % Wilson intervals, and the exact McNemar p-value, on the same `n` problems."""
        base, expert = accuracy(self.base_scores), accuracy(self.expert_scores)
        return {
            "base_accuracy": base.value,
            "base_interval": base.interval,
            "expert_accuracy": expert.value,
            "expert_interval": expert.interval,
            "constant_accuracy": self.constant.value,
            "n": base.n,
            "p_value": mcnemar(self.base_scores, self.expert_scores),
        }


def check_expert_run(run: Run, domain: Domain, options: ExpertTraining) -> dict[Split, Dataset]:
    """Finds what is wrong with a run before its base is loaded, and leaves nothing behind.

    Returns:
        The rows of all splits.

    Raises:
        UserError: as `Run.check`, `load_rows` and `check_step` do.
    """
    run.check()
    rows: dict[Split, Dataset] = {split: load_rows(domain, split) for split in get_args(Split)}
    check_step(options, len(rows["train"]))
    return rows


def train_expert(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    adapter: PeftConfig,
    options: Reinforce | NextToken,
    run: Run,
    *,
    base_name: str,
    test_size: int = 256,
    base_scores: list[float] | None = None,
    shard_base: bool = False,
    beside: Callable[[Path], None] = lambda folder: None,
) -> TrainedExpert:
    """Trains, keeps the expert that was best on the validation split, scores it on the test split, writes it.

    Args:
        adapter: SVF makes an expert; what any other PEFT method makes is written, and judged, in the same way.
        base_name: what the model card calls the base.
        test_size: held-out problems for the score in the card, answered by the base and by the expert.
        base_scores: the base's own scores on those problems, where they are known.
        shard_base: every process keeps a share of the base instead of all of it; it may be on the CPU until then.
        beside: writes what else belongs into the expert's folder, before that appears.

    Raises:
        UserError: as `check_expert_run`, `check_tokenizer`, `check_targets` and `check_prompts` do, or if the domain's
            rewards are none.
        Interrupted: after Ctrl-C, once a checkpoint is written.
        Diverged: at the first NaN; what was best until then has been written.
    """
    rows = check_expert_run(run, domain, options)
    sizes: dict[Split, int] = {"validation": options.validation_size, "test": test_size}
    held_out = {split: rows[split].select(range(min(size, len(rows[split])))) for split, size in sizes.items()}
    check_tokenizer(tokenizer)
    check_template(tokenizer)
    check_targets(adapter, base)
    sampled = [rows["train"]] if isinstance(options, Reinforce) else []
    check_prompts(base.config, tokenizer, [*sampled, *held_out.values()], options.max_new_tokens)
    with run.at_work():
        progress = Progress(domain.name)
        for split, size in sizes.items():
            if (there := len(held_out[split])) < size:
                progress.say(f"{domain.name}: the {split} split has {there} rows, fewer than the {size} asked for")

        def scores(model: PeftModel, split: Split, who: str | None = None) -> list[float]:
            new_tokens, problems = options.max_new_tokens, held_out[split]
            if who is None:
                return held_out_scores(model, tokenizer, domain, problems, max_new_tokens=new_tokens)
            with progress.bar(f"{who} on {len(problems)} held-out problems", len(problems)) as advance:
                return held_out_scores(model, tokenizer, domain, problems, max_new_tokens=new_tokens, on_batch=advance)

        # Before the base is shared out.
        origin = Origin(base_name, fingerprint(base), sketch(base), domain.description, domain.name)
        set_seed(options.seed)  # some adapters begin at random values
        make: Any = make_trainer if isinstance(options, Reinforce) else make_next_token_trainer
        trainer = make(base, tokenizer, domain, adapter, options, run.folder, shard_base=shard_base)
        validation = Validation(
            lambda model: accuracy(scores(model, "validation")), "higher", options.validate_every, options.patience
        )
        result = run.train(trainer, progress, validation)
        model: PeftModel = trainer.model
        if base_scores is None:
            with model.disable_adapter():
                base_scores = scores(model, "test", "base")
        expert_scores = scores(model, "test", "expert")
        constant = constant_answer(held_out["test"]["answer"])
        card = Card(
            name=run.output.name,
            origin=origin,
            recipe=dict(run.recipe),
            parameters=result.parameters,
            best_step=result.best_step,
            train_seconds=result.train_seconds,
            validations=run.log.accuracies(),
            base_accuracy=accuracy(base_scores),
            expert_accuracy=accuracy(expert_scores),
            constant_accuracy=constant,
            peft_type=PeftType(adapter.peft_type).value,
            objective="REINFORCE" if isinstance(options, Reinforce) else "next-token prediction",
        )

        def write(folder: Path) -> None:
            write_trained(folder, model, origin, card)
            plot_curve(run.log.entries(), domain.name, folder / "curve.png")
            beside(folder)

        run.finish(result, write)
    return TrainedExpert(
        **vars(result), model=model, base_scores=base_scores, expert_scores=expert_scores, constant=constant
    )
