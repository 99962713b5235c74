"""A batch that always runs: answers are those of the same requests alone, whoever comes, goes or hangs up meanwhile."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from experts.engine import NativeEngine, Sampling
from experts.engine.continuous import ContinuousBatch, QueueFull, Stopped
from experts.engine.kept_prefixes import BLOCK
from experts.engine.requests import Ended, PromptRead, Request, Written
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from tests.small_models import small_model

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

    def __init__(
        self, batch: ContinuousBatch, prompts: Sequence[Sequence[int]], mixture: Mixture, **options: Any
    ) -> None:
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


def test_of_rows_that_find_no_room_the_youngest_wait_and_go_on_later(engine: NativeEngine) -> None:
    prompts = [prompt[:30] for prompt in PROMPTS]
    ids = tokenize(engine.tokenizer, prompts)
    longest = max(map(len, ids)) + NEW
    sampling = Sampling(temperature=0.9, seed=3)
    for tokens in (longest, 2 * longest, 3 * longest + 5):
        batch = ContinuousBatch(engine, rows=8, tokens=tokens)
        widest: list[int] = []
        read = batch._batch.__class__.read

        def noting(own: Any, read: Any = read, widest: list[int] = widest) -> torch.Tensor:
            logits: torch.Tensor = read(own)
            widest.append(own.mask.numel())
            return logits

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch._batch.__class__, "read", noting)
            heard = [Heard(batch, [own], Mixture.of({"a": 0.5}), sampling=sampling, max_new_tokens=NEW) for own in ids]
            said = [text(engine, each.all().tokens()) for each in heard]
        batch.close()
        assert said == [
            engine.generate([prompt], max_new_tokens=NEW, mixture=Mixture.of({"a": 0.5}), sampling=sampling)[0]
            for prompt in prompts
        ]
        assert max(widest) <= tokens


def test_what_is_cancelled_leaves_and_the_others_go_on(engine: NativeEngine, batch: ContinuousBatch) -> None:
    engine.generation_config.eos_token_id = None
    ids = tokenize(engine.tokenizer, ["what is this?"])
    endless = [Heard(batch, ids, Mixture.of({"b": 1.0}), n=2) for _ in range(4)]
    for each in endless[:2]:
        assert not isinstance(each.events.get(timeout=60), Exception)
    for each in endless:
        each.request.cancel()
    answer = Heard(batch, ids, Mixture.of({"b": 1.0}), max_new_tokens=NEW).all()
    assert [text(engine, answer.tokens())] == engine.generate(
        ["what is this?"], max_new_tokens=NEW, mixture=Mixture.of({"b": 1.0})
    )
    batch.close()
    assert (batch.running, batch.queued) == (0, 0)


def test_how_likely_tokens_are_is_what_the_model_says(engine: NativeEngine, batch: ContinuousBatch) -> None:
    prompts = ["and one more of them " * 20, "bb"]  # the first is read in several pieces
    ids = [list(own) for own in engine.tokenizer(prompts)["input_ids"]]  # type: ignore[operator]
    mixture = Mixture(("a", "b"), torch.tensor([[0.5, 0.2], [0.0, 1.0]]))
    heard = Heard(batch, ids, mixture, max_new_tokens=5, logprobs=2, prompt_logprobs=3, n=2).all()
    for row in range(4):
        prompt = row // 2
        whole = torch.tensor([[*ids[prompt], *heard.tokens(row)]])
        with torch.no_grad(), engine.model.base_model.mixed(mixture.names, mixture.weights[[prompt]]):  # type: ignore[operator,union-attr]
            logps = engine.model(whole).logits[0].float().log_softmax(1)
        found = [*heard.read[prompt].logps, *(event.logp for event in heard.written[row])]
        assert [each.token for each in found] == whole[0, 1:].tolist()
        own = logps[:-1].gather(1, whole[0, 1:, None])[:, 0]
        assert torch.allclose(torch.tensor([each.logp for each in found]), own, atol=1e-4)
        for place, each in enumerate(found):
            assert len(each.top) == (3 if place < len(ids[prompt]) - 1 else 2)
            assert torch.allclose(
                torch.tensor([p for _, p in each.top]), logps[place].topk(len(each.top)).values, atol=1e-4
            )


def test_a_prompt_may_only_be_read(engine: NativeEngine, batch: ContinuousBatch) -> None:
    heard = Heard(batch, [[5, 6, 7]], Mixture.of({}), max_new_tokens=0, prompt_logprobs=0).all()
    assert (heard.why, heard.written) == ({0: "length"}, {})
    assert [each.token for each in heard.read[0].logps] == [6, 7]


def test_weights_beyond_all_bounds_fail_their_own_request_alone(engine: NativeEngine, batch: ContinuousBatch) -> None:
    ids = tokenize(engine.tokenizer, ["what is this?"])
    good = Heard(batch, ids, Mixture.of({"a": 0.4}), max_new_tokens=NEW)
    bad = Heard(batch, ids, Mixture.of({"a": 1e38}), max_new_tokens=NEW, sampling=Sampling(temperature=1.0))
    with pytest.raises(UserError, match="too large"):
        bad.all()
    assert [text(engine, good.all().tokens())] == engine.generate(
        ["what is this?"], max_new_tokens=NEW, mixture=Mixture.of({"a": 0.4})
    )


def test_a_mixture_of_nobody_fails_and_the_batch_runs_on(batch: ContinuousBatch) -> None:
    with pytest.raises(UserError, match="nobody"):
        Heard(batch, [[5]], Mixture.of({"nobody": 1.0}), max_new_tokens=2).all()
    assert Heard(batch, [[5]], Mixture.of({}), max_new_tokens=2).all().tokens()


def test_what_cannot_be_answered_is_refused_at_once(engine: NativeEngine) -> None:
    engine.generation_config.eos_token_id = None
    batch = ContinuousBatch(engine, rows=1, waiting=3)
    base = Mixture.of({})
    for prompts, options in (([[]], {}), ([[5] * 512], {}), ([[5] * 500], {"max_new_tokens": 13}), ([[5]], {"n": 4})):
        with pytest.raises(UserError):
            Heard(batch, prompts, base, **options)
    with pytest.raises(UserError, match="a prompt of 512 tokens exceeds the context of 512 tokens"):
        Heard(batch, [[5] * 512], base)
    first = Heard(batch, [[5]], base)
    first.events.get(timeout=60)
    waiting = [Heard(batch, [[5]], base) for _ in range(3)]
    with pytest.raises(QueueFull):
        Heard(batch, [[5]], base)
    waiting[1].request.cancel()  # whoever has gone takes nobody's place
    waiting[1] = Heard(batch, [[5]], base)
    batch.close()
    for each in (first, *waiting):
        with pytest.raises(Stopped):
            each.all()
    with pytest.raises(Stopped):
        Heard(batch, [[5]], base)


def test_bases_that_are_not_decoded_row_by_row_answer_one_by_one(tiny_tokenizer: Any) -> None:
    model = small_model("Mamba")
    model.generation_config.eos_token_id = [7, 40]
    engine = NativeEngine(model, tiny_tokenizer)
    assert not engine.decodes
    batch = ContinuousBatch(engine)
    ids = tokenize(tiny_tokenizer, PROMPTS[:3])
    samplings = [Sampling(temperature=0.9, seed=3), Sampling(), Sampling(repetition_penalty=1.4)]
    heard = [
        Heard(batch, [own], Mixture.of({}), max_new_tokens=NEW, n=2, sampling=sampling)
        for own, sampling in zip(ids, samplings, strict=True)
    ]
    for prompt, sampling, each in zip(PROMPTS, samplings, heard, strict=False):
        wanted = engine.generate([prompt] * 2, max_new_tokens=NEW, mixture=Mixture.of({}, 2), sampling=sampling)
        assert [text(engine, each.all().tokens(row)) for row in range(2)] == wanted
    gone = Heard(batch, ids[:1], Mixture.of({}), max_new_tokens=40)
    gone.events.get(timeout=60)
    gone.request.cancel()
    with pytest.raises(UserError, match="can only answer"):
        Heard(batch, ids[:1], Mixture.of({}), prompt_logprobs=0).all()
    batch.close()
    assert batch.running == 0


def test_what_a_prompt_begins_with_is_read_once_under_each_mixture(
    engine: NativeEngine, batch: ContinuousBatch
) -> None:
    draw = random.Random(1)
    heads = ["You are a helpful assistant. " * length for length in (1, 2, 4)]
    for _ in range(30):
        together = []
        for _ in range(draw.randint(1, 3)):
            prompt, weights = draw.choice(heads) + draw.choice(PROMPTS)[:20], draw.choice(WEIGHTS)
            ids = tokenize(engine.tokenizer, [prompt])
            asked = Heard(batch, ids, Mixture.of(weights), max_new_tokens=4, sampling=draw.choice(SAMPLINGS[:2]))
            together.append((prompt, weights, asked))
        for prompt, weights, asked in together:
            alone = engine.generate(
                [prompt], max_new_tokens=4, mixture=Mixture.of(weights), sampling=asked.request.sampling
            )
            assert [text(engine, asked.all().tokens())] == alone
    one, ids = (tokenize(engine.tokenizer, ["Do as you are told. " * 5 + then]) for then in ("One.", "The other."))
    Heard(batch, one, Mixture.of({"a": 0.3, "b": 0.4}), max_new_tokens=1).all()
    mixture = Mixture(("b", "a"), torch.tensor([[0.4, 0.3]]))  # in another order
    length = len(ids[0])
    shared = next(place for place, (own, other) in enumerate(zip(one[0], ids[0], strict=False)) if own != other)
    kept = Heard(batch, ids, mixture, max_new_tokens=1).all().read[0].kept
    assert kept == shared // BLOCK * BLOCK > 0
    assert Heard(batch, ids, Mixture.of({"a": 0.31}), max_new_tokens=1).all().read[0].kept == 0
    assert Heard(batch, ids, mixture, max_new_tokens=0).all().read[0].kept == (length - 1) // BLOCK * BLOCK
    told = Heard(batch, ids, mixture, max_new_tokens=0, prompt_logprobs=0).all().read[0]
    assert told.kept == 0
    assert len(told.logps) == length - 1


def test_nothing_is_kept_of_an_expert_that_has_been_replaced(
    engine: NativeEngine, batch: ContinuousBatch, library: ExpertLibrary
) -> None:
    prompt = PROMPTS[-1][:60]
    ids = tokenize(engine.tokenizer, [prompt])
    mixture = Mixture.of({"b": 1.0})
    Heard(batch, ids, mixture, max_new_tokens=NEW).all()
    expert = cast(Expert, library.adapter("b"))
    other = replace(expert, z={matrix: 2 - z for matrix, z in expert.z.items()})
    batch.between(lambda: engine.drop("b"))
    batch.between(lambda: engine.carry("b", other))
    again = Heard(batch, ids, mixture, max_new_tokens=NEW).all()
    assert again.read[0].kept == 0
    assert [text(engine, again.tokens())] == engine.generate([prompt], max_new_tokens=NEW, mixture=mixture)
