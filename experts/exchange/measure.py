"""What a lossy export changes: how likely texts are under the base, the expert, and what it was exported to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.outside.errors import UserError
from experts.outside.pictures import text_tokenizer
from experts.outside.reading import read_lines


@dataclass(frozen=True)
class Texts:
    """The texts that likelihoods are measured on."""

    name: str
    lines: Sequence[str]


NEUTRAL_TEXTS = Texts(
    "neutral sentences",  # of no domain in particular
    (
        "The harbour lies on the north side of the island, where the water is deep enough for ferries.",
        "She put the letter back into the drawer, turned off the lamp and listened to the rain.",
        "Bread needs flour, water, salt and time. The dough is ready when a dent in it comes back slowly.",
        "A train leaves the city every half hour; on Sundays the first one goes at seven.",
        "To change the battery, open the cover on the back and lift the old one out with a flat tool.",
        "The committee met twice in spring and decided to repair the old bridge before winter.",
        "Owls hunt at night. Their feathers are soft at the edges, so that they fly almost without a sound.",
        "If the sum of two numbers is even, then both are even or both are odd.",
    ),
)


def read_texts(file: Path) -> Texts:
    """The texts in a file, one per line.

    Raises:
        UserError: if it cannot be read or holds none.
    """
    lines = [line for _, line in read_lines(file)]
    if not lines:
        raise UserError(f"there is no text in {file}")
    return Texts(file.name, lines)


@dataclass(frozen=True)
class LogLikelihood:
    """The mean log-likelihood of a token, in nats."""

    base: float
    expert: float
    lora: float
    tokens: int


def measure_lora(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, expert: Expert | Lora, lora: Lora, texts: Sequence[str]
) -> LogLikelihood:
    """How likely texts are under the base, the expert (or a mixture's exact LoRA), and a LoRA that replaces it.

    Raises:
        UserError: if there is no text.
    """
    in_base, tokens = log_likelihood(base, tokenizer, texts)
    attached = expert.attach(base)  # as if for training: nothing is merged into a bfloat16 base, which would round it
    in_expert, _ = log_likelihood(attached, tokenizer, texts)
    attached.unload()
    attached = lora.attach(base)
    in_lora, _ = log_likelihood(attached, tokenizer, texts)
    attached.unload()
    return LogLikelihood(in_base, in_expert, in_lora, tokens)


@torch.inference_mode()
def log_likelihood(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[float, int]:
    """The mean log-likelihood of a token in nats, and the number of tokens. Puts the model into evaluation mode.

    A text follows the tokenizer's begin (or end) token, and every token of it counts, even a begin token that the
    tokenizer adds. A text longer than the context is read in windows, each as full as possible. All of this is as in
    lm-eval's `loglikelihood_rolling`.

    Raises:
        UserError: if there is no text.
    """
    text_alone: Any = text_tokenizer(tokenizer)
    begin = [token for token in (text_alone.bos_token_id, text_alone.eos_token_id) if token is not None][:1]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    model.eval()
    total, tokens = 0.0, 0
    for text in texts:
        begun = bool(begin) and text.startswith(text_alone.decode(begin))
        ids = [*begin, *text_alone.encode(text, **({"add_special_tokens": False} if begun else {}))]
        window = context or len(ids)
        for start in range(0, len(ids) - 1, window):
            end = min(start + window, len(ids) - 1)
            read = torch.tensor([ids[max(0, end - window) : end]], device=model.device)  # [1, T]
            targets = torch.tensor(ids[start + 1 : end + 1], device=model.device)
            logits = model(input_ids=read).logits[0, -len(targets) :].float()  # [T', V]
            total -= F.cross_entropy(logits, targets, reduction="sum").item()
        tokens += max(0, len(ids) - 1)
    if not tokens:
        raise UserError("there is no text to measure the export on")
    return total / tokens, tokens
