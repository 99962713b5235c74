"""What ends an answer and what pads a batch, as a base's tokenizer and its model must agree on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from experts.outside.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What checkpoints call tokens that no text holds: <pad>, <|finetune_right_pad_id|>, <|reserved_special_token_0|>.
_SPARE_TOKEN = re.compile(r"\W*(pad|finetune_right_pad_id|unused_?\d*|reserved_special_token_\d+)\W*", re.IGNORECASE)


def settle_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes tokenizer and model agree on what ends an answer and what pads a batch, and makes decoding greedy.

    Raises:
        UserError: if they cannot belong together, or nothing can pad.
    """
    from transformers import GenerationConfig

    vocabulary = model.config.get_text_config().vocab_size
    if tokenizer.vocab_size > vocabulary:  # tokens that were added later may be beyond it
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has {tokenizer.vocab_size} tokens, and its model "
            f"{vocabulary}: they belong to different models"
        )
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    ends = [index for index in dict.fromkeys([tokenizer.eos_token_id, *known]) if index is not None]
    pad = _pad_token_id(tokenizer, ends, vocabulary)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "left"
    model.config.pad_token_id = pad
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=pad
    )


def _pad_token_id(tokenizer: PreTrainedTokenizerBase, ends: list[int], vocabulary: int) -> int:
    """The first that will do of: the pad token, a spare token, the unknown token, an end token."""
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    spare = [index for index, content in special.items() if _SPARE_TOKEN.fullmatch(content)]
    for index in (tokenizer.pad_token_id, *spare, tokenizer.unk_token_id):
        if index is not None and index not in ends and index < vocabulary:
            return index
    if not ends:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} has neither a pad nor an end token; set one")
    return ends[0]
