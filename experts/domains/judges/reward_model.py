"""Reward models: sequence classifiers with one logit that read the whole chat, as TRL loads them by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from experts.outside.errors import UserError
from experts.outside.files import expand

BATCH = 32
"""The number of chats that are read at once."""


def scores(name: str, prompts: Sequence[Any], completions: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """The logit of each chat, a prompt and its completion, rendered with the model's own template.

    Raises:
        UserError: if the model cannot be loaded, or its tokenizer has no template or refuses a chat.
    """
    import torch

    model, tokenizer = _loaded(name)
    texts = [_shown(name, tokenizer, [*p, *c]) for p, c in zip(prompts, completions, strict=True)]
    found: list[float] = []
    for start in range(0, len(texts), BATCH):
        options = {"return_tensors": "pt", "padding": True, "padding_side": "right", "add_special_tokens": False}
        batch = tokenizer(text=texts[start : start + BATCH], **options).to(model.device)
        with torch.inference_mode():
            found += model(**batch).logits[:, 0].float().tolist()
    return found


def check(name: str) -> None:
    """Raises UserError if the model's configuration says it is not a sequence classifier with one logit."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    try:
        config = AutoConfig.from_pretrained(_source(name))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"the reward model {name} is a {config.model_type}, for which transformers has no sequence classifier"
        )
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any("SequenceClassification" in each for each in architectures):
        raise UserError(f"the reward model {name} is a {architectures[0]}, not a sequence classifier")
    if config.num_labels != 1:
        raise UserError(
            f"the reward model {name} has {config.num_labels} labels, but a reward is one number; choose a model with "
            "one label"
        )


@cache
def _loaded(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    check(name)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(_source(name))
        model = AutoModelForSequenceClassification.from_pretrained(_source(name), num_labels=1)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(name, error) from error
    if tokenizer.chat_template is None:
        raise UserError(f"the reward model {name} has no chat template, so it cannot read a chat")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # it reads the last token before padding
    return model.to(device).eval(), tokenizer


def _shown(name: str, tokenizer: Any, chat: list[Any]) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # a template is a program that comes with the checkpoint, and may fail in any way
        said = " ".join(str(error).split())
        raise UserError(f"the reward model {name} cannot read a chat: {type(error).__name__}: {said}") from error


def _source(name: str) -> str:
    folder = expand(name)
    return str(folder) if os.path.isdir(folder) else name


def _unreadable(name: str, error: Exception) -> UserError:
    said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".: ")
    return UserError(f"the reward model {name} cannot be loaded: {said}")
