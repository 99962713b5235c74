"""Chats, read where they enter: whatever people write as a prompt becomes messages, and messages become tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from copy import copy
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from experts.outside.errors import UserError, short
from experts.outside.pictures import load_pictures, words
from experts.outside.template_arguments import check_arguments, named_in

logger = logging.getLogger(__name__)

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase | ProcessorMixin)

Chat = list[dict[str, Any]]  # {"role": "user", "content": "…"}, or content in parts, some of them pictures

TEXT = ("text", "input_text", "output_text")  # the types of text parts, here and in OpenAI's requests
PICTURE = ("image", "image_url", "input_image")
PICTURE_SOURCES = ("image", "image_url", "url", "path", "base64")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TOLD = ("system", "developer")  # every answer must take into account what they say
SILENT = ("assistant", "tool", "function")  # may have nothing to say: tool calls alone, a tool without a result

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{{ '\\n' if message['role'] == 'user' else '\\n\\n' }}"
    "{% endfor %}"
)
"""What a base without a chat template reads: the user's text and a newline, after which the answer begins. An empty
line ends any other turn."""


def read_prompts(prompts: Iterable[str | Chat]) -> list[str | Chat]:
    """The prompts as a list: strings as they are, chats with every message as a dict of `role` and `content`.

    Prompts may come as any ordered iterable: a list, a generator, an array, a column of a table. A list of messages is
    one chat, and so one prompt. Content may come in parts, {"type": "text", "text": …} or {"type": "image", "image":
    …}, also as OpenAI's requests and transformers spell them; if all parts are text, they become one text. An
    assistant's or a tool's content may be missing or None. Other fields of a message stay, for the template.

    Raises:
        UserError: naming the prompt and the message, if one is something else or holds half a character.
    """
    if isinstance(prompts, str | bytes):
        raise UserError("prompts must be a list; put a single prompt in brackets")
    if hasattr(prompts, "columns") or hasattr(prompts, "column_names"):
        raise UserError("prompts must be a list, not a table; give one column of it")
    given = _listed(prompts, "prompts must be a list of strings and chats")
    if given and all(isinstance(one, Mapping) or hasattr(one, "role") for one in given):
        given = [given]
    return [read_prompt(prompt, _name(number, len(given))) for number, prompt in enumerate(given, 1)]


def read_prompt(prompt: Any, what: str = "the prompt") -> str | Chat:
    """One prompt, read as in `read_prompts`; `what` names it in a UserError."""
    if isinstance(prompt, str):
        return whole_text(prompt, what)
    messages = _listed(getattr(prompt, "messages", prompt), f"{what} must be a string or a list of messages")
    if not messages:
        raise UserError(f"{what} is a chat without a message; give it one of the role user")
    return [_message(message, f"message {number} of {what}") for number, message in enumerate(messages, 1)]


def read_texts(texts: Iterable[str], what: str) -> list[str]:
    """Strings as a list, given in any form that prompts may have; `what` names them.

    Raises:
        UserError: if one is something else or holds half a character.
    """
    given = _listed(texts, f"{what} must be a list of strings")
    for number, text in enumerate(given, 1):
        if not isinstance(text, str):
            raise UserError(f"{what} must be strings, not {short(text)} (number {number})")
    return [whole_text(text, f"number {number} of the {what}") for number, text in enumerate(given, 1)]


def as_chat(prompt: str | Chat) -> Chat:
    """The prompt as a chat: a string is one user turn, a list of messages already is a chat."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def with_system_prompt(prompts: Sequence[str | Chat], text: str | None) -> list[str | Chat]:
    """Prompts from `read_prompts`, after a system message if `text` gives one, else unchanged.

    Raises:
        UserError: for a text that is not a string; or naming the prompt that already has a system message.
    """
    if text is None:
        return list(prompts)
    if not isinstance(text, str):
        raise UserError(f"system_prompt must be a string, not {short(text)}")
    system = {"role": "system", "content": whole_text(text, "the system prompt")}
    chats = [as_chat(prompt) for prompt in prompts]
    for number, chat in enumerate(chats, 1):
        if any(message["role"] == "system" for message in chat):
            raise UserError(
                f"{_name(number, len(chats))} has a system message of its own; leave out either that or system_prompt"
            )
    return [[system, *chat] for chat in chats]


def check_system_is_shown(chat: Chat, text: str, show: Callable[[Chat], str], what: str) -> None:
    """Raises UserError if a template leaves out what one of `TOLD` says: some show only the user and the assistant.

    Args:
        text: what the template makes of the chat.
        show: another chat → what the template makes of it.
    """
    for place, message in enumerate(chat):
        if message["role"] in TOLD and message["content"]:
            more = message["content"] + ("." if isinstance(message["content"], str) else _parts("."))
            if show([*chat[:place], {**message, "content": more}, *chat[place + 1 :]]) == text:
                raise UserError(
                    f"the base's chat template leaves out what the {message['role']} says in {what}; put it in a "
                    "message from the user"
                )


def whole_text(text: str, what: str) -> str:
    """The text itself.

    Raises:
        UserError: if it holds a lone surrogate, which no tokenizer reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(
            f"{what} holds half a character (U+{half:04X}, a lone surrogate); decode its source with the "
            "encoding it was written in, such as UTF-8"
        ) from error
    return str(text)  # NumPy's strings are of a class of their own


def refused(what: str, error: Exception) -> UserError:
    """The error to raise if a chat template fails on something."""
    return UserError(f"the base's chat template does not accept {what}: {_said(error)}")


def template_of(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> Any:
    """A tokenizer's chat template, or else `PLAIN_TEMPLATE`, which is logged once; the tokenizer does not change.

    Raises:
        UserError: if a processor has none: only its own template knows where pictures go.
    """
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    if isinstance(tokenizer, ProcessorMixin):
        raise UserError(
            "this base has no chat template, and the default one does not support pictures; choose a base that chats, "
            "or give its processor a template (processor.chat_template)"
        )
    _say_plain(tokenizer.name_or_path)
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" + PLAIN_TEMPLATE if begins else PLAIN_TEMPLATE


def with_template_arguments(tokenizer: Tokenizer, arguments: Mapping[str, Any]) -> Tokenizer:
    """A copy of a tokenizer whose chat template has these arguments (Qwen3's `enable_thinking`) wherever it is used.

    Without arguments it is the tokenizer itself.

    Raises:
        UserError: as `check_arguments` does.
    """
    if not arguments:
        return tokenizer
    template = template_of(tokenizer)
    check_arguments(template, arguments)
    # Jinja reads Python's literals. The newline belongs to the tag.
    set_ = "".join(f"{{% set {name} = {value!r} %}}\n" for name, value in arguments.items())
    own = copy(tokenizer)
    own.chat_template = (
        set_ + template if isinstance(template, str) else {name: set_ + each for name, each in template.items()}
    )
    return own


@cache
def _say_plain(name: str) -> None:
    logger.warning(
        "the base%s has no chat template, so it reads the user's text and a newline; to use another, put a "
        "chat_template.jinja beside its tokenizer, or set tokenizer.chat_template",
        f" {name}" if name else "",
    )


def check_template(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
    """Raises UserError if a tokenizer has a chat template that cannot show a single user turn."""
    render(tokenizer, ["?"])


def check_roles(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Sequence[str | Chat]) -> None:
    """Raises UserError, naming prompt and message, for a role that neither `ROLES` nor the chat template names."""
    for number, prompt in enumerate(prompts, 1):
        for place, message in enumerate(as_chat(prompt), 1):
            role = message["role"]
            if role not in ROLES and not named_in(tokenizer.chat_template, role):
                what = f"message {place} of {_name(number, len(prompts))}"
                raise UserError(f"{what} has the unknown role {short(role)}; the roles are {', '.join(ROLES)}")


def render(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Iterable[str | Chat], **arguments: Any
) -> list[str]:
    """The text that the base reads for each chat, up to where the assistant's answer begins.

    Args:
        arguments: for the chat template, such as `tools`, if `check_arguments` allows them.

    Raises:
        UserError: naming the prompt, if it is not one, the base's chat template refuses it, it has a picture but the
            base only reads text, or it has a role that neither `ROLES` nor the template names; or as `template_of`.
    """
    chats, template = _shown(tokenizer, prompts), template_of(tokenizer)
    return [
        _rendered(tokenizer, template, chat, _name(number, len(chats)), arguments)
        for number, chat in enumerate(chats, 1)
    ]


def tokenize(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Iterable[str | Chat], **arguments: Any
) -> list[list[int]]:
    """Token ids of each chat, up to where the assistant's answer begins; as `render` and `tokenize_seen`."""
    prompts = read_prompts(prompts)
    texts = render(tokenizer, prompts, **arguments)
    if not texts:
        return []
    if isinstance(tokenizer, ProcessorMixin):
        return tokenize_seen(tokenizer, prompts, **arguments)["input_ids"]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def tokenize_seen(processor: ProcessorMixin, prompts: Sequence[str | Chat], **options: Any) -> Any:
    """All that a vision-language model reads of chats: their tokens and their pictures.

    Args:
        options: for the processor's `apply_chat_template`.

    Raises:
        UserError: as `read_prompts` does, or if a picture does not load or the processor cannot read a prompt.
    """
    chats = [load_pictures(chat) for chat in _shown(processor, prompts)]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **options}
    try:
        return processor.apply_chat_template(cast(Any, chats), **options)
    except Exception as error:  # such as for a text that spells the token that stands for a picture
        raise UserError(f"the base's processor cannot read the prompts: {_said(error)}") from error


def _shown(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Iterable[str | Chat]) -> list[Chat]:
    """The chats as the base's template wants them: content in parts for a vision-language base, else as strings."""
    chats = [as_chat(prompt) for prompt in read_prompts(prompts)]
    check_roles(tokenizer, chats)
    if isinstance(tokenizer, ProcessorMixin):
        return [[{**message, "content": _parts(message["content"])} for message in chat] for chat in chats]
    for number, chat in enumerate(chats, 1):
        for part in (part for message in chat for part in _parts(message["content"])):
            if part["type"] != "text":
                kind = "a picture" if part["type"] == "image" else f"a part of type {part['type']!r}"
                raise UserError(
                    f"this base reads only text, but {_name(number, len(chats))} has {kind}; choose a vision-language "
                    "model"
                )
    return [[{**message, "content": words(message["content"])} for message in chat] for chat in chats]


def _rendered(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    template: Any,
    chat: Chat,
    what: str,
    arguments: Mapping[str, Any],
) -> str:
    # If there are several templates, the tokenizer chooses.
    options: dict[str, Any] = {} if template is tokenizer.chat_template else {"chat_template": template}

    def show(shown: Chat) -> str:
        return cast(
            str,
            tokenizer.apply_chat_template(
                cast(Any, shown), add_generation_prompt=True, tokenize=False, **options, **arguments
            ),
        )

    try:
        text = whole_text(show(chat), what)
        check_system_is_shown(chat, text, show, what)
    except UserError:
        raise
    except Exception as error:  # a template is a program that comes with the checkpoint, and may fail in any way
        raise refused(what, error) from error
    if not text.strip() and not options:
        raise UserError(f"the base's chat template leaves out {what}; choose a base that chats")
    return text


def _message(given: Any, what: str) -> dict[str, Any]:
    if isinstance(given, Mapping):
        fields = dict(given)
    elif hasattr(given, "model_dump"):  # OpenAI's own messages, and other pydantic models
        fields = given.model_dump()
    elif is_dataclass(given) and not isinstance(given, type):
        fields = asdict(given)
    else:
        raise UserError(f"{what} must be a dict of role and content, not {short(given)}")
    # Tables give every message the fields of all messages, and templates ask whether a field is there.
    fields = {name: value for name, value in fields.items() if value is not None}
    role = fields.get("role")
    if not isinstance(role, str) or not role:
        raise UserError(f"{what} must have a role such as user, system or assistant, not {short(role)}")
    if "content" not in fields and role not in SILENT:
        raise UserError(f"{what}, of the role {role}, has no content; give a string, or a list of parts")
    return {**fields, "role": str(role), "content": _content(fields.get("content", ""), what)}


def _content(given: Any, what: str) -> str | list[dict[str, Any]]:
    if isinstance(given, str):
        return whole_text(given, what)
    given = _listed(given, f"the content of {what} must be a string or a list of parts")
    parts = [_part(part, f"part {number} of {what}") for number, part in enumerate(given, 1)]
    return words(parts) if all(part["type"] == "text" for part in parts) else parts


def _part(given: Any, what: str) -> dict[str, Any]:
    if isinstance(given, str):
        return {"type": "text", "text": whole_text(given, what)}
    if not isinstance(given, Mapping):
        raise UserError(f"{what} must be a dict such as {{'type': 'text', 'text': …}}, not {short(given)}")
    fields = {name: value for name, value in given.items() if value is not None}
    kind = fields.get("type", "text" if "text" in fields else None)
    if not isinstance(kind, str):
        raise UserError(f"{what} must have a type such as text or image, not {short(kind)}")
    if kind in TEXT:
        if not isinstance(fields.get("text"), str):
            raise UserError(f"{what} must have a string as its text, not {short(fields.get('text'))}")
        return {**fields, "type": "text", "text": whole_text(fields["text"], what)}
    if kind not in PICTURE:
        return fields
    source = next((fields[name] for name in PICTURE_SOURCES if name in fields), None)
    if isinstance(source, Mapping):  # {"type": "image_url", "image_url": {"url": …}}
        source = source.get("url")
    return {"type": "image", "image": source}


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _listed(given: Any, what: str) -> list[Any]:
    """An ordered iterable, as a list."""
    try:
        if not isinstance(given, str | bytes | Mapping | Set):
            return list(given)
    except TypeError:
        pass
    raise UserError(f"{what}, not {short(given)}")


def _name(number: int, of: int) -> str:
    return "the prompt" if of == 1 else f"prompt {number}"


def _said(error: Exception) -> str:
    """An error in one line. A template that refuses a chat says so itself; for other errors, the kind is added."""
    said = " ".join(str(error).split())
    return said if type(error) is TemplateError and said else f"{type(error).__name__}: {said}".removesuffix(": ")
