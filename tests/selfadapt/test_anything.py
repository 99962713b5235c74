"""Whatever comes as prompts, or to the server, is answered or refused in one line: no input is a traceback.

A test that fails prints the smallest such input that was found, and the line that brings it back.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch import EmbeddingDispatcher, PromptDispatcher
from dispatch.prompt import named
from experts import ExpertLibrary
from experts.engine import NativeEngine
from experts.engine.lora_cache import mixture_name, read_mixture_name
from experts.outside.chats import read_prompts, tokenize
from experts.outside.errors import UserError
from selfadapt.serving.two_passes import TwoPasses, serving

# Fixtures of one test serve all of its examples; what they hold, no example changes.
quickly = settings(
    max_examples=300,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.text(st.characters(exclude_categories=()), max_size=20)  # with halves of characters
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)
values: st.SearchStrategy[Any] = json_values | st.binary(max_size=8)


def near(strategy: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = values) -> st.SearchStrategy[Any]:
    """Mostly what it should be."""
    return st.one_of(strategy, strategy, strategy, strategy, other)


def fields(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict of some of the fields, each nearly what it should be."""
    return st.fixed_dictionaries({}, optional={name: near(strategy) for name, strategy in known.items()})


kinds = st.sampled_from(["text", "input_text", "image", "image_url", "input_audio", "refusal"])
parts = fields(type=kinds, text=texts, image=st.just("nowhere.png"), image_url=fields(url=texts))
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
contents = texts | st.lists(near(parts), max_size=3)
messages = st.fixed_dictionaries(
    {"role": near(roles), "content": near(contents)}, optional={"tool_calls": values, "name": values}
) | fields(role=roles, content=contents)
chats = st.lists(near(messages), max_size=3)
prompts = st.lists(near(texts | chats), max_size=3) | near(chats)

weights = st.sampled_from(["1", "-0.5", ".3", "1e-2", "1e39", "inf", "nan", "", "1e", "0x1", "1e999", "٣"]) | texts
experts = near(st.sampled_from(["a", "b", "c", "A"]), texts)
mixture_names = near(
    st.lists(st.tuples(experts, weights).map("=".join), max_size=3).map(lambda parts: "mix:" + ",".join(parts)), texts
)


def body(request: Any) -> bytes:
    """A request as JSON; what JSON has no word for is text."""
    return json.dumps(request, default=repr).encode()


requests = st.fixed_dictionaries(
    {"model": near(st.just("auto") | experts | mixture_names)},
    optional={"messages": near(chats), "prompt": near(texts), "temperature": near(st.floats())},
)
bodies = (
    st.binary()
    | values.map(body)
    | requests.map(body)
    | requests.map(body).flatmap(lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end]))
)


def one_line(error: UserError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@quickly
@given(prompts)
@pytest.mark.long
def test_any_prompts_are_tokens_or_one_line(tiny_tokenizer: Any, given_: Any) -> None:
    try:
        read = read_prompts(given_)
        ids = tokenize(tiny_tokenizer, given_)
    except UserError as error:
        one_line(error)
        return
    assert len(ids) == len(read)
    assert all(ids)
    assert read_prompts(read) == read
    assert tokenize(tiny_tokenizer, read) == ids


@settings(quickly, max_examples=60)
@given(st.lists(near(texts, chats), min_size=1, max_size=3))
def test_any_prompts_have_weights_of_at_most_one(tiny_model: Any, tiny_tokenizer: Any, given_: Any) -> None:
    dispatcher = PromptDispatcher(NativeEngine(tiny_model, tiny_tokenizer), {"a": "Sums.", "b": "Animals."}, soft=True)
    try:
        weights = dispatcher(given_).weights
    except UserError as error:
        one_line(error)
        return
    assert len(weights) == len(given_)
    assert (weights >= 0).all()
    assert (weights.sum(1) <= 1 + 1e-6).all()


@quickly
@given(texts, st.lists(texts, max_size=4))
def test_any_answer_names_some_of_the_names(said: str, names: list[str]) -> None:
    assert named(said, names) <= set(names)
    for name in names:
        assert len(named(name, [name])) <= 1


@quickly
@given(mixture_names)
def test_any_name_is_a_mixture_with_one_name_or_one_line(library: ExpertLibrary, name: str) -> None:
    try:
        mixture = read_mixture_name(name, library)
    except UserError as error:
        one_line(error)
        return
    again = mixture_name(mixture)
    assert again == (mixture_name(read_mixture_name(again, library)) if again else "")


@pytest.fixture
def app(library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SELFADAPT_LIBRARY", str(library.folder))
    monkeypatch.setenv("SELFADAPT_DISPATCH", "b")
    serving.cache_clear()
    passes = TwoPasses(server)
    passes.dispatcher = EmbeddingDispatcher.from_library(library)
    yield passes
    serving.cache_clear()


async def server(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


@quickly
@given(bodies)
def test_any_request_is_answered_or_refused_in_one_line(app: Any, sent: bytes) -> None:
    status, body = asyncio.run(answer(app, sent))
    if status == 200:
        assert body == sent or json.loads(body).keys() == json.loads(sent).keys()
    else:
        assert status == 400
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        one_line(UserError(error["message"]))


async def answer(app: Any, sent: bytes) -> tuple[int, bytes]:
    got: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message: Any) -> None:
        got.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"content-length", b"0")]}
    await app(scope, receive, send)
    return got[0]["status"], got[1]["body"]
