"""Next-token prediction, the rival of REINFORCE: the same steps, validations and files, on the answers themselves.

One step takes the mean cross-entropy of the answers' tokens and the end token after each, for a batch of prompts; the
prompts' tokens are read but not trained on. Prompts are tokenised as for generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from experts.domains.base import Domain, load_rows
from experts.engine import context_of, position_ids
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.training.options import ExpertTraining, check_step
from experts.training.trainer import LoadedBase, RunTrainer, trainer_arguments

TARGETS = ("solution", "completion", "answer")
"""The columns that may hold what the model should write; the first that exists counts."""


@dataclass(frozen=True, kw_only=True)
class NextToken(ExpertTraining):
    """How an adapter is trained on given answers, which are read whole; `max_new_tokens` limits those it writes."""

    rows_option: ClassVar[str] = "sequences_per_step"
    config_class: ClassVar[type] = TrainingArguments

    sequences_per_step: int = 64
    """Prompts with their answers, over all processes together."""

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "include_num_input_tokens_seen": "non_padding"}


def target_of(rows: Dataset) -> str:
    """The column that holds what the model should write."""
    return next(name for name in TARGETS if name in rows.column_names)


def token_rows(tokenizer: PreTrainedTokenizerBase, rows: Dataset, context: int | None) -> Dataset:
    """`input_ids` and `labels`: prompt, answer, end token; a label of −100 is not trained on.

    Raises:
        UserError: if a row has no answer, or does not fit into `context` tokens.
    """
    target = target_of(rows)
    examples = []
    for id_, prompt, text in zip(rows["id"], tokenize(tokenizer, rows["prompt"]), rows[target], strict=True):
        if not (isinstance(text, str) and text):
            raise UserError(f"the row {id_} has no {target}: next-token prediction needs a text in every row")
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if context is not None and len(prompt) + len(answer) > context:
            raise UserError(
                f"the row {id_} has {len(prompt) + len(answer)} tokens, more than the model's context of {context}: "
                "shorten it or leave it out"
            )
        examples.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return Dataset.from_list(examples)


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """A batch of token rows: tensors [B, T], and the positions whose logits are needed.

    It is padded on the left, so all answers end at the same place, and there are no more positions than the longest
    answer needs.
    """

    def padded(name: str, value: int) -> Tensor:
        own = [torch.tensor(row[name]) for row in rows]
        return pad_sequence(own, batch_first=True, padding_value=value, padding_side="left")

    labels = padded("labels", -100)
    lengths = torch.tensor([len(row["labels"]) for row in rows])
    mask = (torch.arange(labels.shape[1]) >= labels.shape[1] - lengths[:, None]).long()
    first = int((labels != -100).any(0).nonzero()[0])
    return {
        "input_ids": padded("input_ids", pad),
        "attention_mask": mask,
        "position_ids": position_ids(mask),
        "labels": labels,
        # Position t − 1 predicts token t. The vocabulary is most of the work, and the prompt needs none of it.
        "logits_to_keep": torch.arange(first - 1, labels.shape[1] - 1),
    }


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """The summed cross-entropy of the answers' tokens, divided by their number in the whole step."""
    logits = outputs.logits  # [B, K, V]: for the last K labels
    wanted = labels[:, -logits.shape[1] :]
    total = cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100, reduction="sum")
    return total / num_items_in_batch


def make_next_token_trainer(
    base: LoadedBase, domain: Domain, adapter: PeftConfig, options: NextToken, folder: Path
) -> RunTrainer:
    """A trainer whose checkpoints go to `folder`.

    Raises:
        UserError: as `check_step` and `token_rows` do, or if the base is a vision-language model.
    """
    model, tokenizer = base.model, base.tokenizer
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError("objective: next_token reads text alone; a vision-language model is trained by reinforce")
    rows = load_rows(domain, "train")
    arguments = trainer_arguments(options, check_step(options, len(rows)), model.device, folder)
    context = context_of(model.config)
    pad = cast(int, tokenizer.pad_token_id)
    return RunTrainer(
        model=get_peft_model(model, adapter),
        args=options.configuration(**arguments),
        train_dataset=token_rows(tokenizer, rows, context),
        data_collator=lambda rows: collate(rows, pad),
        compute_loss_func=answer_loss,
        processing_class=tokenizer,
        shard_base=base.shard,
    )
