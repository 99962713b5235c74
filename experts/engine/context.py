"""How much a base reads: its context, and the window of its layers."""

from __future__ import annotations

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from experts.outside.errors import UserError


def context_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model can read and write; None if its configuration does not say."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context if context is not None and context > 0 else None  # XLNet's -1 stands for any length


def check_context(config: PreTrainedConfig, longest: int, new_tokens: int) -> None:
    """Raises UserError if a prompt of `longest` tokens and the new ones do not fit the model's context."""
    context = context_of(config)
    if context is not None and longest + new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's context of {context}; "
            "shorten the prompt or ask for fewer new tokens"
        )


def attention_window(config: PreTrainedConfig) -> int:
    """How many tokens the layer with the narrowest window attends to; a huge number if all layers see everything.

    A window counts places, including those that a mask hides: only a text that fits into it may have holes.
    """
    layers = DynamicCache(config=config.get_text_config()).layers
    return min(
        (layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=1 << 30
    )
