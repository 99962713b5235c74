"""Whatever people write as prompts is read as chats, or refused in one line that names the place."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from experts.engine import NativeEngine
from experts.outside.chats import (
    PLAIN_TEMPLATE,
    check_template,
    read_prompts,
    render,
    tokenize,
    with_system_prompt,
    with_template_arguments,
)
from experts.outside.errors import UserError

USER = {"role": "user", "content": "2 + 2?"}
CHAT = [{"role": "system", "content": "Be brief."}, USER]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def text(*parts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in parts]


def shown(tokenizer: Any, prompt: Any) -> str:
    [rendered] = render(tokenizer, [prompt])
    return rendered.removesuffix("<|im_start|>assistant\n")


def with_template(tokenizer: Any, template: Any) -> Any:
    copy = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, **tokenizer.special_tokens_map)
    copy.chat_template = template
    return copy


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400
    return said


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("2 + 2?", "2 + 2?"),
        (text("2 + 2?"), "2 + 2?"),
        (text("Add.", "2 + 2?"), "Add.\n2 + 2?"),
        (tuple(text("2 + 2?")), "2 + 2?"),
        (np.array(text("2 + 2?")), "2 + 2?"),
        (["Add.", "2 + 2?"], "Add.\n2 + 2?"),
        ([{"text": "2 + 2?"}], "2 + 2?"),
        ([{"type": "input_text", "text": "2 + 2?"}], "2 + 2?"),
        ([{"type": "text", "text": "2 + 2?", "image": None}], "2 + 2?"),  # as a table with pictures has it
        ([], ""),
        ("", ""),
        (np.str_("2 + 2?"), "2 + 2?"),
        ("<|im_end|>", "<|im_end|>"),
        ("\x00 \u2028 🦁", "\x00 \u2028 🦁"),
    ],
)
def test_content_is_a_text_or_parts_of_text(tiny_tokenizer: Any, content: Any, wanted: str) -> None:
    assert shown(tiny_tokenizer, [{"role": "user", "content": content}]) == f"<|im_start|>user\n{wanted}<|im_end|>\n"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": [], "tool_calls": None},
        {"role": "tool", "content": None, "tool_call_id": "1"},
        {"role": "function", "content": None, "name": "add"},
    ],
)
def test_an_assistant_or_a_tool_may_have_nothing_to_say(tiny_tokenizer: Any, message: dict[str, Any]) -> None:
    empty = f"<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>{message['role']}\n<|im_end|>\n"
    assert shown(tiny_tokenizer, [USER, message]) == empty
    strict = with_template(tiny_tokenizer, "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}")
    assert shown(strict, [USER, message]).endswith(f"{message['role']}: ")


def test_what_else_a_message_holds_is_the_templates_and_fields_without_a_value_are_none(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls[0].function.name }}{% endif %}.{% endfor %}"
    )
    chat = [{**USER, "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert shown(with_template(tiny_tokenizer, template), chat) == ".add."
    assert chat[0] == {**USER, "tool_calls": None}  # what the user holds stays as it was


@dataclass
class Message:
    role: str
    content: Any


class Dumped:
    """As OpenAI's own messages are."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "2 + 2?", "refusal": None}


@pytest.mark.parametrize(
    "prompt",
    [
        [USER],
        (USER,),
        deque([USER]),
        np.array([USER]),
        [UserDict(USER)],
        [Message("user", "2 + 2?")],
        [Dumped()],
        SimpleNamespace(messages=[USER]),
        "2 + 2?",
        np.str_("2 + 2?"),
    ],
)
def test_a_chat_is_any_sequence_of_messages(tiny_tokenizer: Any, prompt: Any) -> None:
    assert shown(tiny_tokenizer, prompt) == "<|im_start|>user\n2 + 2?<|im_end|>\n"


def one_by_one() -> Iterator[str]:
    yield from ("a", "b")


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (one_by_one(), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (pandas.Series(["a", "b"], index=[7, 3]), ["a", "b"]),
        (Dataset.from_dict({"prompt": ["a", "b"]})["prompt"], ["a", "b"]),
        (["a", CHAT], ["a", CHAT]),
        (Dataset.from_dict({"prompt": [CHAT]})["prompt"], [CHAT]),
        (CHAT, [CHAT]),  # a chat alone is one prompt
        (tuple(CHAT), [CHAT]),
        ([Message("user", "a")], [[{"role": "user", "content": "a"}]]),
        ([], []),
        ([""], [""]),
    ],
)
def test_prompts_are_whatever_can_be_gone_through_in_order(prompts: Any, wanted: list[Any]) -> None:
    assert read_prompts(prompts) == wanted
    assert read_prompts(read_prompts(wanted)) == wanted


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("2 + 2?", "put a single prompt in brackets"),
        (b"2 + 2?", "put a single prompt in brackets"),
        (None, "must be a list of strings and chats, not None"),
        (3, "must be a list of strings and chats, not 3"),
        (np.array("a"), "must be a list of strings and chats"),
        (USER, "must be a list of strings and chats, not {"),
        ({"a", "b"}, "must be a list of strings and chats, not {"),
        (pandas.DataFrame({"prompt": ["a"]}), "give one column"),
        (Dataset.from_dict({"prompt": ["a"]}), "give one column"),
        ([1, "a"], "prompt 1 must be a string or a list of messages, not 1"),
        (["a", None], "prompt 2 must be a string or a list of messages, not None"),
        (["a", b"b"], "prompt 2 must be a string or a list of messages, not b'b'"),
        (["a", USER], "prompt 2 must be a string or a list of messages, not {"),
        (["a", float("nan")], "prompt 2 must be a string or a list of messages, not nan"),
        (["a", []], "prompt 2 is a chat without a message"),
        (["a", ["b"]], "message 1 of prompt 2 must be a dict of role and content, not 'b'"),
        (["a", [USER, 3]], "message 2 of prompt 2 must be a dict of role and content, not 3"),
        ([[{"content": "a"}]], "message 1 of the prompt must have a role such as user, system or assistant, not None"),
        ([[{"role": 3, "content": "a"}]], "must have a role such as user, system or assistant, not 3"),
        ([[{"role": "", "content": "a"}]], "must have a role such as user, system or assistant, not ''"),
        ([[{"role": "user"}]], "message 1 of the prompt, of the role user, has no content"),
        ([[{"role": "user", "content": None}]], "has no content"),
        ([[{"role": "user", "content": 3}]], "content of message 1 of the prompt must be a string or a list of parts"),
        ([[{"role": "user", "content": True}]], "not True"),
        ([[{"role": "user", "content": b"a"}]], "not b'a'"),
        ([[{"role": "user", "content": {"text": "a"}}]], "not {'text': 'a'}"),
        ([[{"role": "user", "content": [3]}]], "part 1 of message 1 of the prompt must be a dict such as"),
        ([[{"role": "user", "content": [{"type": "text"}]}]], "must have a string as its text, not None"),
        ([[{"role": "user", "content": [{"type": "text", "text": 3}]}]], "must have a string as its text, not 3"),
        ([[{"role": "user", "content": [{}]}]], "must have a type such as text or image, not None"),
        ([[{"role": "user", "content": [{"type": ["text"], "text": "a"}]}]], "must have a type"),
        (["a\ud83d"], "the prompt holds half a character (U+D83D, a lone surrogate)"),
        ([[USER, {"role": "assistant", "content": "\udcff"}]], "message 2 of the prompt holds half a character"),
        ([[{"role": "user", "content": text("\udcff")}]], "part 1 of message 1 of the prompt holds half a character"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line_that_says_where(prompts: Any, said: str) -> None:
    assert said in refusal(read_prompts, prompts)


def test_parts_that_a_base_cannot_read_are_refused(tiny_tokenizer: Any, seeing: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    for part, what in ((picture, "a picture"), (sound, "a part of type 'input_audio'")):
        chat = [{"role": "user", "content": [part, *text("Which?")]}]
        assert f"prompt 2 has {what}" in refusal(tokenize, tiny_tokenizer, ["a", chat])
    assert "a part of type 'input_audio'" in refusal(tokenize, seeing[1], [[{"role": "user", "content": [sound]}]])


@pytest.mark.parametrize("source", ["image", "url", "path", "image_url", "OpenAI"])
def test_a_picture_is_named_as_transformers_and_openai_do(seeing: Any, tmp_path: Any, source: str) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    file = str(tmp_path / "1.png")
    part = {"type": "image", source: file} if source != "OpenAI" else {"type": "image_url", "image_url": {"url": file}}
    wanted = tokenize(seeing[1], [[{"role": "user", "content": [{"type": "image", "image": file}, *text("?")]}]])
    assert tokenize(seeing[1], [[{"role": "user", "content": [part, *text("?")]}]]) == wanted


def test_a_text_that_spells_the_token_of_a_picture_is_refused_in_one_line(seeing: Any) -> None:
    model, processor = seeing
    assert "cannot read the prompts" in refusal(
        NativeEngine(model, processor).generate, ["an <image>"], max_new_tokens=1
    )


NEEDS_TURNS = """{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{{ m['content'] }}{% endfor %}"""
NO_SYSTEM = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role
not supported') }}{% endif %}{{ messages[0]['content'] }}"""


@pytest.mark.parametrize(
    ("template", "chat", "said"),
    [
        (NO_SYSTEM, CHAT, "does not accept prompt 2: System role not supported"),
        (NEEDS_TURNS, [USER, USER], "does not accept prompt 2: Conversation roles must alternate user/assistant"),
        (NEEDS_TURNS, [{"role": "assistant", "content": "4"}], "does not accept prompt 2: Conversation roles"),
        ("{{ messages[0]['content'] }", "a", "does not accept the prompt: TemplateSyntaxError: "),
        ("{% for m in messages %}{{ m.content }}", "a", "does not accept the prompt: TemplateSyntaxError: "),
        ("{{ messages[0]['content'] + 3 }}", "a", "TypeError: "),
        ("{{ messages[0]['content']['text'] + 'a' }}", "a", "UndefinedError: "),
        ("{{ 1 / 0 }}", "a", "ZeroDivisionError: "),
        ({"rag": "{{ messages }}"}, "a", "ValueError: This model has multiple chat templates"),
        ("", "a", "leaves out the prompt"),
        ("{% for m in messages %}{% endfor %}\n", "a", "leaves out the prompt"),
    ],
)
def test_a_template_that_fails_says_so_in_one_line(
    tiny_model: Any, tiny_tokenizer: Any, template: Any, chat: Any, said: str
) -> None:
    tokenizer = with_template(tiny_tokenizer, template)
    prompts = ["a", chat] if "prompt 2" in said else [chat]
    assert said in refusal(NativeEngine(tiny_model, tokenizer).generate, prompts, max_new_tokens=1)
    assert said in refusal(NativeEngine(tiny_model, tokenizer).loglikelihood, prompts, ["b"] * len(prompts))
    if isinstance(chat, str):
        assert said in refusal(check_template, tokenizer)
    else:
        check_template(tokenizer)


USERS_ALONE = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content | trim }}{% endif %}{% endfor %}"
FIRST_SYSTEM = "{% for m in messages %}{% if loop.first or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


def test_a_template_that_passes_over_the_system_says_so_in_one_line(
    tiny_model: Any, tiny_tokenizer: Any, seeing: Any
) -> None:
    tokenizer = with_template(tiny_tokenizer, USERS_ALONE)
    engine = NativeEngine(tiny_model, tokenizer)
    for call in (engine.generate, lambda prompts, **options: [*engine.stream(prompts[1], mixture=None, **options)]):
        assert "leaves out what the system says in " in refusal(call, ["a", CHAT], max_new_tokens=1)
    assert render(tokenizer, [[{"role": "system", "content": ""}, USER]]) == render(tokenizer, [[USER]])
    again = [*CHAT, {"role": "system", "content": "Be long."}, USER]
    assert "leaves out" in refusal(render, with_template(tiny_tokenizer, FIRST_SYSTEM), [again])
    assert render(with_template(tiny_tokenizer, FIRST_SYSTEM), [CHAT]) == ["Be brief." + USER["content"]]
    assert len(tokenize(seeing[1], [CHAT])) == 1  # content in parts


def test_a_role_is_one_of_the_usual_or_one_that_the_template_names(
    tiny_model: Any, tiny_tokenizer: Any, seeing: Any
) -> None:
    for role in ("system", "developer", "user", "assistant", "tool", "function"):
        assert f"<|im_start|>{role}\n" in shown(tiny_tokenizer, [{"role": role, "content": "a"}, USER])
    names = with_template(tiny_tokenizer, "{% for m in messages %}{{ m.role in ['user', \"ipython\"] }}{% endfor %}")
    assert shown(names, [{"role": "ipython", "content": "a"}, USER]) == "TrueTrue"
    engine = NativeEngine(tiny_model, tiny_tokenizer)
    for role in ("boss", "User", "system ", "ipython", "content"):
        chat = [USER, {"role": role, "content": "4"}]
        said = (
            f"message 2 of prompt 2 has the unknown role {role!r}; the roles are system, developer, user, assistant, "
        )
        assert said in refusal(engine.generate, ["a", chat], max_new_tokens=1)
        assert said in refusal(tokenize, seeing[1], ["a", chat])
        plain = with_template(tiny_tokenizer, None)
        assert said in refusal(render, plain, ["a", chat])
        choice = {"default": tiny_tokenizer.chat_template, "rag": f"{{{{ '{role}' }}}}"}
        assert len(render(with_template(tiny_tokenizer, choice), [chat])) == 1


def test_what_a_template_passes_over_of_the_developer_is_said(tiny_tokenizer: Any) -> None:
    alone = "{% for m in messages if m.role in ['system', 'user'] %}{{ m.content }}{% endfor %}"
    chat = [{"role": "developer", "content": "Be brief."}, USER]
    said = refusal(render, with_template(tiny_tokenizer, alone), [chat])
    assert said.endswith("leaves out what the developer says in the prompt; put it in a message from the user")


def test_a_system_prompt_is_the_first_message(tiny_tokenizer: Any) -> None:
    given: list[Any] = ["2 + 2?", [USER]]
    wanted = [[CHAT[0], {"role": "user", "content": "2 + 2?"}], CHAT]
    assert with_system_prompt(given, "Be brief.") == wanted
    assert with_system_prompt(given, None) == given
    said = refusal(with_system_prompt, [*given, CHAT], "Be brief.")
    assert said.startswith("prompt 3 has a system message of its own")


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("2 + 2?", "2 + 2?\n"),
        ("", "\n"),
        (CHAT, "Be brief.\n\n2 + 2?\n"),
        ([USER, {"role": "assistant", "content": "4"}, USER], "2 + 2?\n4\n\n2 + 2?\n"),
    ],
)
def test_a_base_without_a_template_reads_plain_text(
    tiny_model: Any, tiny_tokenizer: Any, prompt: Any, wanted: str
) -> None:
    plain, named = with_template(tiny_tokenizer, None), with_template(tiny_tokenizer, PLAIN_TEMPLATE)
    assert render(plain, [prompt]) == [wanted]
    if prompt:
        assert render(named, [prompt]) == [wanted]
    check_template(plain)
    assert plain.chat_template is None  # the tokenizer stays as it is
    assert tokenize(plain, [prompt]) == [plain.encode(wanted, add_special_tokens=False)]
    answers = [NativeEngine(tiny_model, each).generate([prompt or "a"], max_new_tokens=4) for each in (plain, named)]
    assert answers[0] == answers[1]


def test_plain_text_begins_as_the_tokenizer_has_texts_begin(tiny_tokenizer: Any) -> None:
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer = type(tiny_tokenizer)(tokenizer_object=backend, **tiny_tokenizer.special_tokens_map)
    assert tokenize(tokenizer, ["2 + 2?"]) == [tokenizer("2 + 2?\n")["input_ids"]]


def test_what_a_base_without_a_template_reads_is_said_once(
    tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = with_template(tiny_tokenizer, None)
    plain.name_or_path = "folder/of-a-base"
    for _ in range(2):
        render(plain, ["2 + 2?"])
    (said,) = [record.getMessage() for record in caplog.records]
    assert "folder/of-a-base has no chat template" in said


def test_a_processor_without_a_template_is_refused(seeing: Any) -> None:
    processor = seeing[1]
    processor.chat_template = None
    assert "the default one does not support pictures" in refusal(check_template, processor)


THINKS = """
{% macro head() %}{{ 'T' if thinks is not defined or thinks else 'N' }}{% endmacro %}
{% for m in messages %}{{ m.content }}
{{ head() }}{{ words | default('-') }}{% if words is not defined %}!{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    "arguments",
    [{}, {"thinks": True}, {"thinks": False}, {"thinks": None}, {"thinks": 0}, {"words": 'it\'s\n"ü" {{ 1 }}'}],
)
def test_a_template_gets_its_arguments_wherever_it_is_shown(tiny_tokenizer: Any, arguments: dict[str, Any]) -> None:
    tokenizer = with_template(tiny_tokenizer, THINKS)
    own = with_template_arguments(tokenizer, arguments)
    wanted = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, **arguments)
    assert render(own, ["2 + 2?"]) == [wanted]
    assert tokenizer.chat_template == THINKS
    assert (own is tokenizer) == (not arguments)


@pytest.mark.parametrize(
    ("template", "arguments", "said"),
    [
        (THINKS, {"think": True}, "does not know the argument 'think'"),
        (THINKS, {"thinks = 3 %}": True}, "does not know the argument"),
        (THINKS, {"head": True}, "does not know the argument 'head'"),  # a macro of the template's own
        (THINKS, {"content": True}, "does not know the argument 'content'"),  # of a message
        (THINKS, {"default": True}, "does not know the argument 'default'"),  # a filter
        (THINKS, {"range": True}, "does not know the argument 'range'"),
        (THINKS, {"messages": "x"}, "argument messages is always set"),
        (THINKS, {"add_generation_prompt": False}, "argument add_generation_prompt is always set"),
        (THINKS, {"tokenize": True}, "argument tokenize is always set"),
        (THINKS, {"chat_template": "x"}, "argument chat_template is always set"),
        ("{% set a = a if a is defined else 1 %}{{ messages }}", {"b": 1}, "does not know the argument 'b'; known: a"),
        ("{% if %}", {"b": 1}, "the base's chat template is not valid Jinja"),
        (None, {"thinks": True}, "does not know the argument 'thinks'"),
        (THINKS, {"thinks": object()}, "thinks must be a JSON value"),
        (THINKS, {"thinks": float("nan")}, "thinks must be a JSON value"),
    ],
)
def test_an_argument_that_is_none_is_refused(tiny_tokenizer: Any, template: Any, arguments: Any, said: str) -> None:
    assert said in refusal(with_template_arguments, with_template(tiny_tokenizer, template), arguments)


def test_tokens_are_those_of_the_template(tiny_tokenizer: Any) -> None:
    wanted = tiny_tokenizer.apply_chat_template([CHAT, [USER]], add_generation_prompt=True)["input_ids"]
    assert tokenize(tiny_tokenizer, [CHAT, "2 + 2?"]) == wanted
    assert tokenize(tiny_tokenizer, []) == []


@pytest.mark.parametrize("continuations", ["ab", ["a", 3], ["a", None], ["a", "\ud800"], [CHAT, CHAT], 3])
def test_continuations_are_strings(tiny_model: Any, tiny_tokenizer: Any, continuations: Any) -> None:
    assert "continuations" in refusal(NativeEngine(tiny_model, tiny_tokenizer).loglikelihood, ["a", "b"], continuations)
    scores = NativeEngine(tiny_model, tiny_tokenizer).loglikelihood(np.array(["a", "b"]), one_by_one())  # type: ignore[arg-type]
    assert scores.tolist() == NativeEngine(tiny_model, tiny_tokenizer).loglikelihood(["a", "b"], ["a", "b"]).tolist()
