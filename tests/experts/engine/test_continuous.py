"""A batch that always runs: answers are those of the same requests alone, whoever comes, goes or hangs up meanwhile."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from experts.engine import NativeEngine, Sampling
from experts.engine.continuous import ContinuousBatch, QueueFull, Stopped
from experts.engine.requests import Ended, PromptRead, Request, Written
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import UserError

NEW = 20
PROMPTS = ["a", "a much longer prompt than the first one", "x", "what is this?", "bb", "and one more of them " * 9]
WEIGHTS = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.3, "b": 0.4}, {"b": 0.2}]
SAMPLINGS = [Sampling(), Sampling(temperature=0.9, seed=3), Sampling(temperature=0.7, top_p=0.8, seed=4)]
SAMPLINGS += [Sampling(repetition_penalty=1.4), Sampling(temperature=1.1, top_k=5, seed=1, repetition_penalty=1.2)]


@pytest.fixture
def engine(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> NativeEngine:
    tiny_model.generation_config.eos_token_id = [7, 40, 99]
    return NativeEngine(library.load(tiny_model), tiny_tokenizer)


@pytest.fixture
def batch(engine: NativeEngine) -> Iterator[ContinuousBatch]:
    batch = ContinuousBatch(engine, rows=5, waiting=200)
    yield batch
    batch.close()


class Heard:
    """What comes of a request."""

    def __init__(self, batch: ContinuousBatch, prompts: Sequence[Sequence[int]], mixture: Mixture, **options: Any) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.request = Request(prompts, mixture, self.events.put, **options)
        self.written: dict[int, list[Written]] = {}
        self.why: dict[int, str] = {}
        self.read: dict[int, PromptRead] = {}
        batch.submit(self.request)

    def all(self) -> Heard:
        while len(self.why) < len(self.request.prompts) * self.request.n:
            event = self.events.get(timeout=60)
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Written):
                assert event.row not in self.why
                self.written.setdefault(event.row, []).append(event)
            elif isinstance(event, Ended):
                self.why[event.row] = event.why
            else:
                assert not self.written
                self.read[event.prompt] = event
        return self

    def tokens(self, row: int = 0) -> list[int]:
        return [event.token for event in self.written.get(row, [])]


def text(engine: NativeEngine, tokens: list[int]) -> str:
    return str(engine.tokenizer.decode(tokens, skip_special_tokens=True))  # type: ignore[union-attr]


def test_answers_are_those_of_the_same_requests_alone(engine: NativeEngine, batch: ContinuousBatch) -> None:
    draw = random.Random(0)
    asked = [
        (draw.choice(PROMPTS), draw.choice(WEIGHTS), draw.choice(SAMPLINGS), draw.randint(1, NEW), draw.randint(1, 3))
        for _ in range(40)
    ]
    heard = []
    for prompt, weights, sampling, new, n in asked:
        ids = tokenize(engine.tokenizer, [prompt])
        heard.append(Heard(batch, ids, Mixture.of(weights), sampling=sampling, max_new_tokens=new, n=n))
    said = []
    for (prompt, weights, sampling, new, n), each in zip(asked, heard, strict=True):
        alone = engine.generate([prompt] * n, max_new_tokens=new, mixture=Mixture.of(weights, n), sampling=sampling)
        assert [text(engine, each.all().tokens(row)) for row in range(n)] == alone
        said += alone
    assert len({*said}) > 30
    assert {why for each in heard for why in each.why.values()} == {"stop", "length"}
