"""What stands before vLLM's server: who answers `auto`, and that a LoRA is there for as long as it is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from dispatch import EmbeddingDispatcher
from experts import ExpertLibrary
from experts.engine.lora_cache import read_mixture_name
from experts.outside.errors import UserError
from selfadapt.serving.two_passes import ASKED, TwoPasses, serving

CHAT, COMPLETION = ASKED


class Server:
    """In vLLM's place: notes what comes through, and `meanwhile` may look around."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.bodies: list[bytes] = []
        self.meanwhile = meanwhile

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        self.bodies.append(message["body"])
        self.meanwhile()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """The status and body of the response to a request that comes in two pieces."""
    sent: list[Any] = []
    half = len(body) // 2
    pieces = iter(
        [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
    )

    async def receive() -> Any:
        return next(pieces)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    asyncio.run(app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.fixture
def server_of_b(library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("SELFADAPT_LIBRARY", str(library.folder))
    monkeypatch.setenv("SELFADAPT_DISPATCH", "b")
    serving.cache_clear()
    yield monkeypatch
    serving.cache_clear()


@pytest.mark.parametrize(
    ("model", "wanted"),
    [("auto", "mix:b=1"), ("mix:b=.30,a=7e-1", "mix:a=0.7,b=0.3"), ("a", "mix:a=1"), ("mix:a=0", None), ("base", None)],
)
def test_a_mixture_goes_on_under_its_one_name_and_is_held(
    server_of_b: pytest.MonkeyPatch, model: str, wanted: str | None
) -> None:
    mixture = read_mixture_name(wanted or "mix:a=0", serving().loras.library)
    held: list[bool] = []
    server = Server(lambda: held.append(serving().loras.holds(mixture)))
    asked = {"model": model, "messages": [{"role": "user", "content": "Which animal barks?"}], "stream": True}
    assert post(TwoPasses(server), CHAT, json.dumps(asked).encode())[0] == 200
    assert json.loads(server.bodies[0]) == asked | {"model": wanted}
    assert held == [wanted is not None]
    assert not serving().loras.holds(mixture)  # it has been answered


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "system", "content": "Sum it up."}, {"role": "user", "content": "Which animal barks?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Which animal barks?"}]}]},
        {"prompt": "Which animal barks?"},
    ],
)
def test_auto_is_dispatched_by_what_was_asked(server_of_b: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    seen: list[str] = []
    server = Server()
    app = TwoPasses(server)

    def dispatcher(prompts: list[Any]) -> Any:
        prompt = prompts[0]
        seen.append(prompt if isinstance(prompt, str) else prompt[-1]["content"])
        return read_mixture_name("mix:a=0.5", serving().loras.library)

    app.dispatcher = dispatcher  # type: ignore[assignment]
    post(app, CHAT if "messages" in asked else COMPLETION, json.dumps(asked | {"model": "auto"}).encode())
    assert seen == ["Which animal barks?"]
    assert json.loads(server.bodies[0])["model"] == "mix:a=0.5"


def test_a_mixture_may_stand_in_the_body(server_of_b: pytest.MonkeyPatch) -> None:
    server = Server()
    base = serving().loras.library.base
    for own in ({}, {"model": base}):
        assert post(TwoPasses(server), CHAT, json.dumps({**own, "mixture": {"a": 0.5}, "n": 1}).encode())[0] == 200
        assert json.loads(server.bodies.pop()) == {"n": 1, "model": "mix:a=0.5"}
    for mixture in ({"a": 0.5, "c": 1}, {"a": "x"}, [1], 3):
        status, body = post(TwoPasses(server), CHAT, json.dumps({"mixture": mixture}).encode())
        assert status == 400
        assert b"\n" not in body
    assert post(TwoPasses(server), CHAT, b'{"mixture": {"a": 1}, "model": "b"}')[0] == 400
    assert not server.bodies


def test_the_list_of_models_has_the_experts(server_of_b: pytest.MonkeyPatch) -> None:
    async def models(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"60")]})
        await send({"type": "http.response.body", "body": b'{"object": "list", "data": [{"id"', "more_body": True})
        await send({"type": "http.response.body", "body": b': "tiny", "object": "model"}]}'})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    asyncio.run(TwoPasses(models)(scope, send, send))  # type: ignore[arg-type]
    assert dict(sent[0]["headers"]) == {b"content-length": str(len(sent[1]["body"])).encode()}
    assert [model["id"] for model in json.loads(sent[1]["body"])["data"]] == ["tiny", "auto", "a", "b"]


@pytest.mark.parametrize("body", [b'{"model": "another",  "n": 1}', b"not json", b"[]", b'{"model": 3}', b'{"n":1}'])
def test_what_is_for_no_mixture_passes_through(server_of_b: pytest.MonkeyPatch, body: bytes) -> None:
    server = Server()
    assert post(TwoPasses(server), CHAT, body) == (200, b"{}")
    assert post(TwoPasses(server), COMPLETION, body) == (200, b"{}")
    assert server.bodies == [body, body]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"model": "mix:c=1"}, "unknown expert 'c'"),
        ({"model": "mix:a"}, "write mix:EXPERT=WEIGHT"),
        ({"model": "auto"}, "needs messages"),
        ({"model": "auto", "prompt": ["one", "two"]}, "one text"),
        ({"model": "auto", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs messages"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    server_of_b: pytest.MonkeyPatch, request_: dict[str, Any], message: str
) -> None:
    server = Server()
    status, body = post(TwoPasses(server), CHAT, json.dumps(request_).encode())
    assert status == 400
    assert message in json.loads(body)["error"]["message"]
    assert "\n" not in json.loads(body)["error"]["message"]
    assert not server.bodies


USER = {"role": "user", "content": "Which animal barks?"}


def refusals(requests: Iterable[bytes]) -> list[str]:
    """What is said to requests of which none may come through."""
    server = Server()
    app = TwoPasses(server)
    messages = []
    for body in requests:
        status, answer = post(app, CHAT, body)
        error = json.loads(answer)["error"]
        assert (status, error["type"], error["code"]) == (400, "BadRequestError", 400), body
        assert "\n" not in error["message"]
        assert len(error["message"]) < 300
        messages.append(error["message"])
    assert not server.bodies
    return messages


def test_messages_of_all_of_openais_kinds_are_dispatched(server_of_b: pytest.MonkeyPatch) -> None:
    server = Server()
    app = TwoPasses(server)
    app.dispatcher = EmbeddingDispatcher.from_library(serving().loras.library)
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    chats: list[Any] = [
        [USER, calls, {"role": "tool", "content": "4"}],
        [{"role": "developer", "content": "Be brief."}, USER],
        [{"role": "user", "content": [picture]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}, {"type": "text", "text": "?"}]}],
        [{"role": "system", "content": "No user here."}],
        [{"role": "user", "content": ""}],
    ]
    for messages in chats:
        assert post(app, CHAT, json.dumps({"model": "auto", "messages": messages}).encode())[0] == 200
        assert json.loads(server.bodies[-1])["messages"] == messages  # vLLM gets them as they are


def test_messages_that_are_none_are_refused_in_one_line(server_of_b: pytest.MonkeyPatch) -> None:
    chats: list[Any] = [
        None,
        3,
        True,
        {},
        USER,
        [],
        [[]],
        [None],
        ["a"],
        [3],
        [{}],
        [{"role": "user"}],
        [{"content": "a"}],
    ]
    chats += [[{**USER, "role": role}] for role in (None, 3, "", ["user"])]
    chats += [[{**USER, "content": odd}] for odd in (None, 3, 1.5, True, {}, [3], [None], [[]], [{}], "\ud800")]
    chats += [[{**USER, "content": [{"type": "text", "text": 3}]}]]
    for said in refusals(json.dumps({"model": "auto", "messages": chat}).encode() for chat in chats):
        assert said.startswith("the model 'auto' needs messages, or one text as its prompt: ")


@pytest.mark.parametrize("model", ["auto", "a", "another"])
def test_a_request_may_be_nested_as_deep_as_it_can_be_read(server_of_b: pytest.MonkeyPatch, model: str) -> None:
    def nested(deep: int) -> bytes:
        asked = {"model": model, "messages": [USER], "metadata": "NEST"}
        return json.dumps(asked).replace('"NEST"', "[" * deep + "]" * deep).encode()

    server = Server()
    assert post(TwoPasses(server), CHAT, nested(300))[0] == 200
    for deep in (*range(900, 1010), 10_000):  # where Python's own limit lies, also that of writing what was read
        assert post(TwoPasses(server), CHAT, nested(deep))[0] in (200, 400)
    said = refusals([nested(100_000), nested(3_000_000)])
    assert said == ["the request is nested too deep"] * 2


def test_numbers_that_json_does_not_have_are_refused(server_of_b: pytest.MonkeyPatch) -> None:
    asked = json.dumps({"model": "a", "messages": [USER], "temperature": "T"})
    for said in refusals(asked.replace('"T"', number).encode() for number in ("NaN", "-Infinity", "1e999")):
        assert "which JSON does not have" in said


def test_a_mixture_that_is_none_is_refused_in_one_line(server_of_b: pytest.MonkeyPatch) -> None:
    names = (
        *("mix:", "mix:=1", "mix:a", "mix:a=", "mix:a=1,", "mix:,a=1", "mix:a==1", "mix:a=1=1", "mix:a=1,a=1"),
        *("mix:a=inf", "mix:a=nan", "mix:a=1e999", "mix:a=1e39", "mix:a=3e38,b=-3e38", "mix:a=0x1", "mix:a=1_0"),
        *("mix:a=1e", "mix:a= 1", "mix:a=1\n", "mix:A=1", "mix:\ud800=1", "mix:a=" + "1" * 100_000 + "x"),
    )
    refusals(json.dumps({"model": name, "messages": [USER]}).encode() for name in names)


def test_of_a_key_that_is_there_twice_the_last_counts(server_of_b: pytest.MonkeyPatch) -> None:
    server = Server()
    post(TwoPasses(server), CHAT, b'{"model": "another", "model": "a", "messages": []}')
    assert json.loads(server.bodies[0]) == {"model": "mix:a=1", "messages": []}


def test_what_is_no_request_is_the_servers_to_refuse(server_of_b: pytest.MonkeyPatch) -> None:
    server = Server()
    bodies = [b"", b"\xff\xfe", b'{"model": "a"', b'"a"', b"null", b'{"model": "\xff"}']
    for body in bodies:
        assert post(TwoPasses(server), CHAT, body)[0] == 200
    assert server.bodies == bodies


def test_whoever_goes_before_all_is_said_gets_nothing(server_of_b: pytest.MonkeyPatch) -> None:
    server = Server()
    pieces = iter([{"type": "http.request", "body": b'{"mo', "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(pieces)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(TwoPasses(server)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send))
    assert not server.bodies


@pytest.mark.parametrize("dispatch", ["prompt", "classifier", "nobody"])
def test_a_dispatcher_that_a_server_cannot_have_is_refused_at_the_start(
    server_of_b: pytest.MonkeyPatch, dispatch: str
) -> None:
    server_of_b.setenv("SELFADAPT_DISPATCH", dispatch)
    with pytest.raises(UserError):
        TwoPasses(Server())
