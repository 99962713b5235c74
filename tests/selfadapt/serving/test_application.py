"""OpenAI's clients talk to the server, and every answer is that of the same request alone."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import AuthenticationError, NotFoundError, RateLimitError

from dispatch.base import question
from experts import ExpertLibrary
from experts.engine import Sampling
from experts.engine.kept_prefixes import BLOCK
from experts.engine.requests import Request
from experts.mixture import Mixture
from experts.outside.errors import UserError
from tests.selfadapt.serving.conftest import Running

USER = [{"role": "user", "content": "Which animal barks?"}]
WHO = {"tiny": {}, "a": {"a": 1.0}, "mix:a=0.7,b=0.2": {"a": 0.7, "b": 0.2}, "auto": {"b": 1.0}}


def alone(
    server: Running, prompt: Any, weights: dict[str, float], n: int = 1, new: int = 12, **sampling: Any
) -> list[str]:
    return server.engine.generate(
        [prompt] * n, max_new_tokens=new, mixture=Mixture.of(weights, n), sampling=Sampling(**sampling)
    )


@pytest.mark.parametrize("model", WHO)
def test_the_official_client_has_the_answers_of_the_library(server: Running, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": USER, "max_tokens": 12, "temperature": 0.8, "seed": 5, "n": 3}
    answer = server.openai.chat.completions.create(**asked)
    wanted = alone(server, USER, WHO[model], 3, temperature=0.8, seed=5)
    assert [choice.message.content for choice in answer.choices] == wanted
    weights = ",".join(f"{name}={weight:g}" for name, weight in WHO[model].items())
    assert answer.model == (f"mix:{weights}" if weights else "tiny")
    pieces = ["", "", ""]
    for chunk in server.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == wanted
    first, second = answer.usage, chunk.usage
    assert first
    assert second
    assert second.prompt_tokens_details
    assert (second.completion_tokens, second.total_tokens) == (first.completion_tokens, first.total_tokens)
    assert second.prompt_tokens_details.cached_tokens == (first.prompt_tokens - 1) // BLOCK * BLOCK > 0
    assert chunk.model == answer.model


def test_completions_have_several_prompts_as_texts_or_tokens(server: Running) -> None:
    texts = ["The cat", "A dog barks at the", "The cat"]
    ids = [server.engine.tokenizer(text)["input_ids"] for text in texts]  # type: ignore[operator]
    asked: dict[str, Any] = {"model": "a", "max_tokens": 9, "temperature": 0.9, "seed": 1, "n": 2}
    both = [server.openai.completions.create(**asked, prompt=prompts) for prompts in (texts, ids)]
    assert [c.text for c in both[0].choices] == [c.text for c in both[1].choices]
    assert len({choice.text for choice in both[0].choices}) == 6  # what is given twice is drawn twice
    alone = server.openai.completions.create(**asked, prompt=texts[:1])
    assert [c.text for c in alone.choices] == [c.text for c in both[0].choices[:2]]
    assert both[0].usage is not None
    assert both[0].usage.prompt_tokens == sum(map(len, ids))
    (one,) = server.openai.completions.create(**asked | {"n": 1}, prompt=ids[0]).choices
    assert one.text == alone.choices[0].text


def test_stop_ends_an_answer_streamed_or_not(server: Running) -> None:
    asked: dict[str, Any] = {"model": "b", "messages": USER, "max_tokens": 40, "temperature": 1.0, "seed": 2}
    long = server.openai.chat.completions.create(**asked).choices[0].message.content or ""
    stop = long[len(long) // 2 : len(long) // 2 + 3]
    answer = server.openai.chat.completions.create(**asked, stop=["never said", stop])
    assert answer.choices[0].message.content == long[: long.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    stream = server.openai.chat.completions.create(**asked, stop=stop, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == long[: long.index(stop)]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "stop"


def test_likelihoods_of_a_prompt_and_its_answer(server: Running) -> None:
    text = "A dog barks"
    for new in (0, 1, 3):
        asked: dict[str, Any] = {"prompt": text, "max_tokens": new, "echo": True, "logprobs": 2, "temperature": 0}
        (choice,) = server.openai.completions.create(model="a", **asked).choices
        found = choice.logprobs
        assert found is not None
        assert found.tokens is not None
        assert found.token_logprobs is not None
        assert choice.text.startswith(text)
        assert len(found.tokens) == len(found.token_logprobs) == len(text) + new
        assert found.token_logprobs[0] is None
        assert found.text_offset is not None
        assert [text[offset] for offset in found.text_offset[: len(text)]] == list(text)
        stream = server.openai.completions.create(model="a", **asked, stream=True)
        pieces = [chunk.choices[0] for chunk in stream]
        assert "".join(piece.text for piece in pieces) == choice.text
        streamed = [logp for piece in pieces if piece.logprobs for logp in piece.logprobs.token_logprobs or []]
        assert streamed == pytest.approx(found.token_logprobs, abs=1e-4)


def test_likelihoods_in_a_chat(server: Running) -> None:
    asked: dict[str, Any] = {"model": "b", "messages": USER, "max_tokens": 5, "temperature": 0, "logprobs": True}
    (choice,) = server.openai.chat.completions.create(**asked, top_logprobs=3).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert 0 < len(content) <= 5
    for token in content:
        assert token.logprob == max(each.logprob for each in token.top_logprobs)  # greedy
        assert len(token.top_logprobs) == 3
    stream = server.openai.chat.completions.create(**asked, top_logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in stream]
    streamed = [token for part in parts if part for token in part.content or []]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_a_body_may_name_its_mixture(server: Running) -> None:
    for model in ("tiny", "base"):
        answer = server.openai.chat.completions.create(
            model=model, messages=USER, max_tokens=12, temperature=0, extra_body={"mixture": {"a": 0.5}}
        )  # type: ignore[call-overload]
        assert answer.model == "mix:a=0.5"
        assert answer.choices[0].message.content == alone(server, USER, {"a": 0.5})[0]


def test_models_are_listed(server: Running) -> None:
    assert [model.id for model in server.openai.models.list()] == ["auto", "tiny", "a", "b"]
    assert server.openai.models.retrieve("b").id == "b"
    with pytest.raises(NotFoundError):
        server.openai.models.retrieve("c")


def test_text_comes_in_parts_and_what_changes_nothing_may_stand_beside_it(server: Running) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Which animal barks?"}]}]
    asked: dict[str, Any] = {
        "messages": parts,
        "max_completion_tokens": 12,
        "temperature": 0,
        "user": "me",
        "store": True,
    }
    asked |= {"metadata": {"a": "b"}, "frequency_penalty": 0, "response_format": {"type": "text"}, "logit_bias": None}
    response = server.http.post("/v1/chat/completions", json=asked)
    assert response.json()["choices"][0]["message"]["content"] == alone(server, USER, {})[0]


CHAT = {"messages": USER, "max_tokens": 2}
SURROGATE = '{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}'
MISTAKES: list[tuple[Any, int, str]] = [
    ("", 400, "not JSON"),
    ("{", 400, "not JSON"),
    ("\xff", 400, "not JSON"),
    ("[]", 400, "JSON object"),
    ('{"temperature": NaN}', 400, "NaN"),
    ('{"temperature": 1e999, "messages": []}', 400, "temperature"),
    ("[" * 100_000, 400, "nested too deep"),
    ('{"messages": ' + "[" * 990 + "]" * 990 + "}", 400, ""),
    ('{"n": ' + "9" * 5000 + "}", 400, ""),
    (SURROGATE, 404, "unknown model"),
    ({}, 400, "no messages"),
    ({"messages": 3}, 400, "messages is wrong"),
    ({"messages": []}, 400, "without a message"),
    ({"messages": ["a"]}, 400, "message 1"),
    ({"messages": [{"role": "boss", "content": "a"}]}, 400, "the roles are system, developer, user, assistant"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half a character"),
    (CHAT | {"stop": "\ud800"}, 400, "half a character"),
    (CHAT | {"stop": [""]}, 400, "stop"),
    (CHAT | {"stop": ["a"] * 17}, 400, "stop"),
    (CHAT | {"model": "c"}, 404, "unknown model 'c'"),
    (CHAT | {"model": 3}, 400, "model is wrong"),
    (CHAT | {"model": "mix:a=1,c=1"}, 400, "unknown expert 'c'"),
    (CHAT | {"model": "mix:a=1e39"}, 400, "finite"),
    (CHAT | {"model": "mix:a=1e38"}, 400, "too large"),
    (CHAT | {"model": "a", "mixture": {"b": 1}}, 400, "and a mixture"),
    (CHAT | {"mixture": {"c": 1}}, 400, "unknown expert"),
    (CHAT | {"mixture": {"a": "1"}}, 400, "mixture"),
    (CHAT | {"n": 0}, 400, "n is wrong"),
    (CHAT | {"n": 65}, 400, "at most 64"),
    (CHAT | {"n": "3"}, 400, "n is wrong"),
    (CHAT | {"temperature": -1}, 400, "temperature"),
    (CHAT | {"top_p": 0}, 400, "top_p"),
    (CHAT | {"max_tokens": 0}, 400, "max_tokens"),
    (CHAT | {"max_tokens": 513}, 400, "context"),
    (CHAT | {"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
    (CHAT | {"logit_bias": {"3": 1}}, 400, "logit_bias"),
    (CHAT | {"tools": [{"type": "function"}]}, 400, "'tools'"),
    (CHAT | {"response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT | {"tool_choice": "required", "tools": [{}]}, 400, "tool_choice"),
    (CHAT | {"top_logprobs": 3}, 400, "logprobs"),
    (CHAT | {"anything": 3}, 400, "anything is not supported"),
    (CHAT | {"chat_template_kwargs": {"messages": []}}, 400, "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
        400,
        "picture",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
            ]
        },
        400,
        "reads only text",
    ),
]


def test_a_mistake_is_one_line_in_openais_form(server: Running) -> None:
    with server.http as client:
        for body, status, said in MISTAKES:
            content = body.encode("latin-1") if isinstance(body, str) else json.dumps(body).encode()
            response = client.post("/v1/chat/completions", content=content)
            error = response.json()["error"]
            assert (response.status_code, said in error["message"]) == (status, True), (body, response.text)
            assert error.keys() == {"message", "type", "param", "code"}
            assert "\n" not in error["message"]
            assert len(error["message"]) < 400
        for prompt in ("", [], [[]], [-1], [259], [1.5], ["a", 3], None, {"a": 1}, [True]):
            response = client.post("/v1/completions", json={"prompt": prompt})
            assert response.status_code == 400, (prompt, response.text)
        assert client.get("/v1/nothing").status_code == 404
        assert client.get("/v1/chat/completions").json()["error"]["message"] == "GET is not allowed at this address"
        assert client.delete("/v1/models").status_code == 405
        answer = client.post("/v1/chat/completions", json=CHAT | {"temperature": 0})
        assert answer.json()["choices"][0]["message"]["content"] == alone(server, USER, {}, new=2)[0]


def test_a_body_beyond_the_bound_is_not_read(start: Callable[..., Running]) -> None:
    server = start(most_bytes=1000)
    said = (413, "the request is larger than 1000 bytes")
    large = json.dumps(CHAT | {"user": "x" * 4_000_000}).encode()
    with server.http as client:
        for _ in range(10):  # whoever is still sending hears of it: the connection is not reset under them
            pieces = (large[start : start + 100_000] for start in range(0, len(large), 100_000))
            for content in (large, pieces):
                response = client.post("/v1/chat/completions", content=content)
                assert (response.status_code, response.json()["error"]["message"]) == said


def test_a_key_is_asked_for(start: Callable[..., Running]) -> None:
    server = start(api_key="secret")
    for key in ("none", "secre", "secret2"):
        with pytest.raises(AuthenticationError):
            server.openai.with_options(api_key=key).models.list()
    assert server.http.get("/metrics").status_code == 401
    assert server.http.get("/health").status_code == 200
    answer = server.openai.with_options(api_key="secret").chat.completions.create(
        model="a", messages=USER, max_tokens=2
    )  # type: ignore[arg-type]
    assert answer.choices


def endless(server: Running) -> Any:
    """A request whose answers end at nothing but the context."""
    server.engine.generation_config.eos_token_id = None
    return {"model": "a", "messages": USER, "stream": True}


def until(what: Callable[[], bool]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError


def test_whoever_finds_the_queue_full_is_told_when_to_come_back(start: Callable[..., Running]) -> None:
    server = start(rows=1, waiting=1)
    with ExitStack() as open_:
        for count in (1, 2):
            response = open_.enter_context(
                server.http.stream("POST", "/v1/chat/completions", json=endless(server) | {"max_tokens": 400})
            )
            assert response.status_code == 200
            until(lambda count=count: server.served.batch.running == 1 and server.served.batch.queued == count - 1)  # type: ignore[misc]
        refused = server.http.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        with pytest.raises(RateLimitError):
            server.openai.chat.completions.create(model="a", messages=USER)  # type: ignore[arg-type]
        assert server.http.get("/health").json()["queued"] == 1


def test_whoever_hangs_up_frees_a_place_at_once(server: Running) -> None:
    batch = server.served.batch
    with server.http.stream("POST", "/v1/chat/completions", json=endless(server)) as response:
        next(response.iter_bytes())
    until(lambda: batch.running == 0)
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=endless(server) | {"stream": False, "n": 8}, timeout=0.3)
    until(lambda: batch.running == 0 and batch.queued == 0)
    assert not batch.in_use()


def ask_and_read_nothing(server: Running, body: dict[str, Any]) -> socket.socket:
    slow = socket.create_connection((server.http.base_url.host, server.http.base_url.port or 0))
    sent = json.dumps(body).encode()
    slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(sent), sent))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    assert slow.recv(1)
    return slow


def test_a_slow_reader_holds_up_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = endless(server) | {"logprobs": True, "top_logprobs": 20, "n": 8}
    with ask_and_read_nothing(server, asked):
        until(lambda: server.served.batch.running == 0)
        answer = server.http.post("/v1/chat/completions", json=CHAT | {"temperature": 0})
        assert answer.json()["choices"][0]["message"]["content"] == alone(server, USER, {}, new=2)[0]
    cancelled: list[Request] = []
    monkeypatch.setattr("selfadapt.serving.answering.LAG", 20)
    monkeypatch.setattr(Request, "cancel", lambda own: (cancelled.append(own), setattr(own, "cancelled", True)))
    with ask_and_read_nothing(server, asked):  # and does not hang up
        until(lambda: server.served.batch.running == 0)
        assert cancelled


def test_experts_come_and_go_while_the_server_runs(server: Running, tmp_path: Path) -> None:
    library = ExpertLibrary.open(server.served.library.folder)
    asked: dict[str, Any] = {"messages": USER, "max_tokens": 12, "temperature": 0}
    with server.http as client:
        before = client.post("/v1/chat/completions", json=asked | {"model": "b"}).json()
        with client.stream("POST", "/v1/chat/completions", json=endless(server) | {"model": "b"}) as response:
            lines = response.iter_lines()
            next(lines)
            library.add(library.path("b"), "c")
            library.remove("b")
            assert client.post("/v1/chat/completions", json=asked | {"model": "b"}).status_code == 404
            after = client.post("/v1/chat/completions", json=asked | {"model": "c"}).json()
            assert after["choices"][0]["message"] == before["choices"][0]["message"]
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["auto", "tiny", "a", "c"]
            assert "b" in server.engine.experts  # someone is answered under it
            assert "[DONE]" in "".join(lines)
        until(lambda: not client.get("/v1/models").is_error and "b" not in server.engine.experts)


def test_a_library_may_be_empty_when_the_server_starts(
    start: Callable[..., Running], library: ExpertLibrary, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(library.path(name), tmp_path / "kept" / name)
        library.remove(name)
    server = start(dispatch="none")

    def listed() -> list[str]:
        return [model["id"] for model in client.get("/v1/models").json()["data"]]

    def carried() -> list[int]:
        return [id(z) for name, z in server.engine.model.named_parameters() if name.endswith("svf_z.b")]

    with server.http as client:
        assert listed() == ["auto", "tiny"]
        library.add(tmp_path / "kept" / "b")
        answers = [client.post("/v1/chat/completions", json=CHAT | {"model": model}).json() for model in ("b", "tiny")]
        assert [answer["model"] for answer in answers] == ["mix:b=1", "tiny"]
        before = carried()
        library.add(tmp_path / "kept" / "a")
        assert listed() == ["auto", "tiny", "b", "a"]
        assert carried() == before != []  # what has not changed is not taken in again


def test_a_library_that_is_damaged_stays_as_it_was(server: Running) -> None:
    path = server.served.library.folder / "library.json"
    path.write_text("{")
    with server.http as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["auto", "tiny", "a", "b"]
        assert client.post("/v1/chat/completions", json=CHAT | {"model": "a"}).status_code == 200


def test_prompts_that_arrive_together_are_dispatched_together(server: Running) -> None:
    asked: list[list[str]] = []

    class Slow:
        def __call__(self, prompts: Any) -> Mixture:
            asked.append([question(prompt) for prompt in prompts])
            if "mistake" in asked[-1]:
                raise UserError("no such prompt")
            time.sleep(0.5)
            weights = torch.tensor([[float(prompt == "a"), float(prompt != "a")] for prompt in asked[-1]])
            return Mixture(("a", "b"), weights)

    server.served.dispatcher = Slow()
    said = ["a", "x", "y", "mistake", "z"]
    with ThreadPoolExecutor(8) as pool:
        ask = lambda text: server.http.post(  # noqa: E731
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 1},
        )
        answers = list(pool.map(ask, said))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 200]
    assert [answer.json().get("model") for answer in answers] == ["mix:a=1", "mix:b=1", "mix:b=1", None, "mix:b=1"]
    assert max(map(len, asked)) > 1


def test_a_server_that_is_told_to_stop_ends_what_is_open(start: Callable[..., Running]) -> None:
    server = start()
    with server.http.stream("POST", "/v1/chat/completions", json=endless(server) | {"n": 8}) as response:
        lines = response.iter_lines()
        next(lines)
        server.server.grace = 0.0
        server.server.should_exit = True
        text = "".join(lines)
    assert "shutting down" in text
    assert text.endswith("[DONE]")
    with pytest.raises(httpx.TransportError):
        server.http.get("/health")


def test_the_figures_count_what_was_done(server: Running) -> None:
    with server.http as client:
        client.post("/v1/chat/completions", json=CHAT | {"model": "mix:a=0.75", "n": 2, "temperature": 0})
        client.post("/v1/chat/completions", json=CHAT | {"model": "auto"})
        client.post("/v1/chat/completions", json={})
        text = client.get("/metrics").text
    for line in (
        'selfadapt_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'selfadapt_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'selfadapt_expert_share_total{expert="a"} 1.5',
        'selfadapt_expert_share_total{expert="base"} 0.5',
        'selfadapt_expert_share_total{expert="b"} 1.0',
        "selfadapt_dispatch_seconds_count 1.0",
        "selfadapt_answer_seconds_count 2.0",
    ):
        assert line in text


def test_the_log_has_a_line_a_request_and_nothing_of_what_was_said(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="selfadapt.serving"):
        server.http.post("/v1/chat/completions?secret", json=CHAT | {"model": "a", "messages": USER})
        server.http.get("/secret")
        until(lambda: len(caplog.records) >= 2)
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["route"], line["status"]) for line in lines] == [("/v1/chat/completions", 200), ("other", 404)]
    assert lines[0]["model"] == "mix:a=1"
    assert "secret" not in caplog.text
    assert "barks" not in caplog.text
