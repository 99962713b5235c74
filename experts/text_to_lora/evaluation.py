"""How well a base does instances of tasks under each of several methods, and how certain that is.

Tasks are the units: a mean is over tasks, of the mean over each task's instances. Its interval is a bootstrap that
draws whole tasks, because the question is about the next task, not the next instance of these tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from experts.engine import NativeEngine
from experts.outside.chats import Chat
from experts.outside.errors import not_installed
from experts.text_to_lora.examples import PromptStyle, make_example, pad_examples, token_losses
from experts.text_to_lora.tasks import Instance, Task
from experts.training.statistics import Estimate, holm, mean_is_zero, over_tasks


@dataclass(frozen=True)
class Method:
    """A way to answer: the model it runs, what the model reads, and what is done for each task."""

    name: str
    chat: Callable[[Task, Instance], Chat]
    model: Callable[[], AbstractContextManager[Any]]
    """Provides the model for the length of a block."""
    task: Callable[[Task], AbstractContextManager[None]] = lambda task: nullcontext()
    """Within the block the model is ready for a task."""


@dataclass(frozen=True)
class Score:
    """The score of one instance."""

    task: str
    id: str
    loss: float
    """Mean cross-entropy of the first right answer, in nats per token."""
    rouge: float
    """ROUGE-L of the greedy answer against the nearest right answer, in percent."""


def evaluate(
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    instances: int = 20,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    done: Callable[[list[Score]], None] = lambda scores: None,
) -> list[Score]:
    """The scores of a method on the first `instances` of each task. Prompts and answers are read whole.

    Args:
        done: called with the scores of each task as they come.

    Raises:
        UserError: if an instance does not fit the model's context.
    """
    style = PromptStyle(max_prompt_tokens=sys.maxsize, max_answer_tokens=sys.maxsize)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    scores = []
    with method.model() as model:
        for task in tasks:
            own = task.instances[:instances]
            chats = [method.chat(task, instance) for instance in own]
            examples = [
                make_example(tokenizer, style, chat, instance.outputs[0])
                for chat, instance in zip(chats, own, strict=True)
            ]
            losses: list[float] = []
            with method.task(task), torch.inference_mode():
                for start in range(0, len(examples), batch_size):
                    batch = pad_examples(examples[start : start + batch_size], pad)
                    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                    losses += token_losses(model, batch)[0].tolist()
                answers = NativeEngine(model, tokenizer).generate(
                    chats, max_new_tokens=max_new_tokens, batch_size=batch_size
                )
            of_task = [
                Score(task.name, instance.id, loss, rouge_l(answer, instance.outputs))
                for instance, loss, answer in zip(own, losses, answers, strict=True)
            ]
            done(of_task)
            scores += of_task
    return scores


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The best ROUGE-L F-measure over the references in percent, stemmed as in Natural Instructions' evaluation."""
    return 100.0 * max(_scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise not_installed("ROUGE-L", "rouge-score", "eval") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


@dataclass(frozen=True)
class Compared:
    """The results of several methods on the same instances."""

    reference: str
    """The method that the others are compared with."""
    estimates: dict[str, dict[str, Estimate]]
    """What `paired_estimates` gives."""
    scores: dict[str, list[Score]]
    """Method → its score for every instance."""

    def table(self) -> str:
        """The estimates as a Markdown table, one row per method."""
        head = f"| method | nats a token | minus {self.reference} | p | ROUGE-L | minus {self.reference} | p |"
        rows = [
            [name, *(text for score in ("loss", "rouge") for text in _cells(own[score], own[f"{score}_difference"]))]
            for name, own in self.estimates.items()
        ]
        return "\n".join([head, "|---|---|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _cells(score: Estimate, difference: Estimate) -> list[str]:
    return [str(score), str(difference), f"{difference.p:.2g}"]


def paired_estimates(scores: Mapping[str, Sequence[Score]], reference: str) -> dict[str, dict[str, Estimate]]:
    """Method → its `loss` and `rouge`, and `loss_difference` and `rouge_difference`: its own minus the reference's.

    The differences are paired by instance, so that the difficulty of an instance cancels out. Their p-values are those
    of a sign-flip test over tasks, Holm-adjusted for the methods, for each of the two scores alone.
    """
    table: dict[str, dict[str, Estimate]] = {method: {} for method in scores}
    for score in ("loss", "rouge"):
        of_task = {method: _by_task(own, score) for method, own in scores.items()}
        differences = {
            method: {
                task: [one - other for one, other in zip(values, of_task[reference][task], strict=True)]
                for task, values in own.items()
            }
            for method, own in of_task.items()
        }
        others = [method for method in scores if method != reference]
        p_values = [mean_is_zero([fmean(own) for own in differences[method].values()]) for method in others]
        adjusted = {reference: 1.0, **dict(zip(others, holm(p_values), strict=True))}
        for method in scores:
            table[method][score] = over_tasks(of_task[method])
            table[method][f"{score}_difference"] = replace(over_tasks(differences[method]), p=adjusted[method])
    return table


def _by_task(scores: Sequence[Score], name: str) -> dict[str, list[float]]:
    """Task → the values of one score, in the order of the instances."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.task, []).append(getattr(score, name))
    return values
