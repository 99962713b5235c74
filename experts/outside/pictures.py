"""Pictures in chats: the content of a message may be parts, {"type": "image", "image": …} or {"type": "text", …}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import load_image

from experts.outside.errors import UserError


def words(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of a message's content without its pictures; each part of text is on a line of its own.

    >>> words([{"type": "image", "image": "1.png"}, {"type": "text", "text": "What is it?"}])
    'What is it?'
    """
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def load_pictures(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat with its pictures opened. Pictures may be PIL images, files, addresses or base64.

    Raises:
        UserError: if one does not load, or a part is neither text nor a picture.
    """
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [_loaded(part) for part in message["content"]]}
        for message in chat
    ]


def text_tokenizer(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    """The tokenizer that reads the text: a processor's own, or `tokenizer` itself."""
    return cast(Any, tokenizer).tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer


def _loaded(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    if part["type"] != "image":
        raise UserError(f"this base reads only text and pictures, but a prompt has a part of type {part['type']!r}")
    try:
        return {**part, "image": load_image(part["image"])}
    except Exception as error:  # from the file system, from decoders, and from whatever fetches an address
        said = f"{part.get('image')!r:.80}"
        raise UserError(f"a picture cannot be loaded: {said}; give a file, a URL or a PIL image") from error
