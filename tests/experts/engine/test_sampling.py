"""Answers that are drawn: each row from numbers of its own, whatever writes it; and texts that end an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from experts.engine import NativeEngine, Sampling
from experts.engine.decoding import Writing, decode
from experts.engine.sampling import Stops, candidates, cut, cut_stream, nucleus
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import UserError

PROMPTS: list[Any] = [
    "a",
    "a much longer prompt than the first one",
    "what is this?",
    "a",
    "bb",
    "and one more of them",
]
BASE = Mixture.of({})
WARM = Sampling(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(params=["decode", "generate"])
def engine(request: Any, tiny_model: Any, tiny_tokenizer: Any) -> NativeEngine:
    """Both ways to write; a checkpoint that asks for much is left to transformers' `generate`."""
    if request.param == "generate":
        tiny_model.generation_config.no_repeat_ngram_size = 400
    return NativeEngine(tiny_model, tiny_tokenizer)


def answers(engine: NativeEngine, prompts: list[Any], sampling: Sampling = WARM, **more: Any) -> list[str]:
    return engine.generate(prompts, max_new_tokens=12, sampling=sampling, **more)


def test_an_answer_does_not_depend_on_its_batch(engine: NativeEngine) -> None:
    together = answers(engine, PROMPTS)
    for batch_size in (1, 2, 4):
        assert answers(engine, PROMPTS, batch_size=batch_size) == together
    assert answers(engine, PROMPTS[:3]) == together[:3]
    assert [answers(engine, [prompt])[0] for prompt in PROMPTS[:3]] == together[:3]
    backwards = answers(engine, PROMPTS[::-1])[::-1]
    assert {*backwards} == {*together}
    assert together[0] != together[3], "the same prompt is drawn for twice, and differently"


def test_both_ways_draw_the_same(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = NativeEngine(tiny_model, tiny_tokenizer)
    decoded = answers(engine, PROMPTS)
    streamed = ["".join(engine.stream(p, max_new_tokens=12, mixture=BASE, sampling=WARM)) for p in PROMPTS[:3]]
    assert streamed == decoded[:3]
    tiny_model.generation_config.no_repeat_ngram_size = 400
    assert answers(engine, PROMPTS) == decoded


def test_a_seed_draws_the_same_again(engine: NativeEngine) -> None:
    assert answers(engine, PROMPTS) == answers(engine, PROMPTS)
    assert answers(engine, PROMPTS) != answers(engine, PROMPTS, Sampling(temperature=0.8, top_p=0.9, seed=4))
    unseeded = Sampling(temperature=1.0)
    torch.manual_seed(0)
    first = answers(engine, PROMPTS, unseeded)
    assert answers(engine, PROMPTS, unseeded) != first
    torch.manual_seed(0)
    assert answers(engine, PROMPTS, unseeded) == first


def test_no_temperature_is_greedy(engine: NativeEngine) -> None:
    greedy = engine.generate(PROMPTS, max_new_tokens=12)
    assert answers(engine, PROMPTS, Sampling(temperature=1e-30)) == greedy
    assert answers(engine, PROMPTS, Sampling(temperature=2.0, top_p=1e-6)) == greedy


def test_rows_of_many_mixtures_are_drawn_for_as_alone(
    library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    engine = NativeEngine(library.load(tiny_model), tiny_tokenizer)
    weights = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0.5, 0.5], [1, 0], [0, 0]])
    mixture = Mixture(("a", "b"), weights)
    together = answers(engine, PROMPTS, mixture=mixture)
    alone = [answers(engine, [prompt], mixture=mixture.rows([row]))[0] for row, prompt in enumerate(PROMPTS)]
    assert together == alone


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_tokens_come_as_often_as_they_are_likely(
    tiny_model: Any, tiny_tokenizer: Any, temperature: float, top_p: float
) -> None:
    ids = tiny_tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    with torch.no_grad():
        logits = tiny_model(torch.tensor([ids["input_ids"]])).logits[0, -1]
    wanted = nucleus((logits / temperature).softmax(0)[None], top_p)[0]
    wanted = wanted / wanted.sum()
    texts = NativeEngine(tiny_model, tiny_tokenizer).generate(
        ["a"] * 4000, max_new_tokens=1, batch_size=4000, sampling=Sampling(temperature, top_p, seed=0)
    )
    for token in wanted.topk(8).indices:
        text = tiny_tokenizer.decode([token], skip_special_tokens=True)
        same = [t for t in range(len(wanted)) if tiny_tokenizer.decode([t], skip_special_tokens=True) == text]
        assert abs(texts.count(text) / 4000 - wanted[same].sum()) < 0.03


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_the_nucleus_is_that_of_transformers(top_p: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    kept = TopPLogitsWarper(top_p)(None, logits).softmax(1)  # type: ignore[arg-type]
    ours = nucleus(logits.softmax(1), top_p)
    torch.testing.assert_close(ours / ours.sum(1, keepdim=True), kept)


WARPERS = st.fixed_dictionaries(
    {"min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]), "top_k": st.integers(0, 50), "top_p": st.floats(0.01, 1.0)}
)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), options=WARPERS)
def test_the_candidates_are_those_of_transformers_in_vllms_order(seed: int, options: dict[str, Any]) -> None:
    logits = wanted = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 3
    if options["min_p"]:
        wanted = MinPLogitsWarper(options["min_p"])(None, wanted)  # type: ignore[arg-type]
    if options["top_k"]:
        wanted = TopKLogitsWarper(options["top_k"])(None, wanted)  # type: ignore[arg-type]
    wanted = TopPLogitsWarper(options["top_p"])(None, wanted).softmax(1)  # type: ignore[arg-type]
    ours = candidates(logits.softmax(1), Sampling(1.0, **options))
    kept = ours > 0
    # Where a sum of probabilities meets top_p, rounding decides.
    on_the_edge = (kept != (wanted > 0)) & (wanted + ours < 1)
    assert on_the_edge.sum() <= 1
    if not on_the_edge.any():
        torch.testing.assert_close(ours / ours.sum(1, keepdim=True), wanted)


def test_what_is_drawn_is_a_candidate(engine: NativeEngine) -> None:
    greedy = engine.generate(PROMPTS, max_new_tokens=12)
    hot: dict[str, Any] = {"temperature": 5.0, "seed": 1}
    assert answers(engine, PROMPTS, Sampling(**hot)) != greedy
    assert answers(engine, PROMPTS, Sampling(**hot, top_k=1)) == greedy
    assert answers(engine, PROMPTS, Sampling(**hot, min_p=1.0)) == greedy
    two = answers(engine, PROMPTS, Sampling(**hot, top_k=2))
    assert two != greedy
    assert two == answers(engine, PROMPTS, Sampling(**hot, top_k=2), batch_size=1)


@pytest.mark.parametrize("penalty", [1.3, 5.0, 0.5])
@pytest.mark.parametrize("checkpoints", [None, 1.2])
def test_a_penalty_on_repetition_is_that_of_transformers(
    tiny_model: Any, tiny_tokenizer: Any, penalty: float, checkpoints: float | None
) -> None:
    """In the place of the checkpoint's own."""
    tiny_model.generation_config.repetition_penalty = checkpoints
    engine = NativeEngine(tiny_model, tiny_tokenizer)
    wanted = []
    for ids in tokenize(tiny_tokenizer, PROMPTS):
        output = tiny_model.generate(torch.tensor([ids]), max_new_tokens=12, repetition_penalty=penalty)
        wanted.append(tiny_tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
    sampling = Sampling(repetition_penalty=penalty)
    assert answers(engine, PROMPTS, sampling) == wanted != answers(engine, PROMPTS, Sampling())
    assert ["".join(engine.stream(p, max_new_tokens=12, mixture=BASE, sampling=sampling)) for p in PROMPTS] == wanted
    assert tiny_model.generation_config.repetition_penalty == checkpoints
    drawn = Sampling(0.8, 0.9, 3, repetition_penalty=penalty)
    assert answers(engine, PROMPTS, drawn, batch_size=1) == answers(engine, PROMPTS, drawn)


def test_a_stop_text_ends_an_answer(engine: NativeEngine) -> None:
    whole = answers(engine, PROMPTS)
    stop = [whole[1][2:4], whole[2][5]]
    cut_short = answers(engine, PROMPTS, Sampling(0.8, 0.9, 3, stop))
    assert cut_short == [cut(text, stop) for text in whole]
    assert cut_short != whole
    for prompt, text in zip(PROMPTS[:3], cut_short, strict=False):
        pieces = engine.stream(prompt, max_new_tokens=12, mixture=BASE, sampling=Sampling(0.8, 0.9, 3, stop))
        assert "".join(pieces) == text


def test_what_is_written_after_a_stop_text_is_not_written(tiny_model: Any, tiny_tokenizer: Any) -> None:
    ids = [tiny_tokenizer.encode(f"{prompt}: ") for prompt in PROMPTS]
    first = tiny_tokenizer.encode("z")[0]
    stops = Stops(tiny_tokenizer, ("zzz", "never"))
    writing = Writing(30, [], lambda logits, *_: torch.full((len(logits),), first), stops)
    with torch.no_grad():
        written = dict(decode(tiny_model, ids, writing, rows_at_once=4))
    assert [len(written[row]) for row in range(len(ids))] == [3] * len(ids)


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one. two", ["."], "one"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo", ["\n\n"], "one\ntwo"),
        ("aab", ["ab"], "a"),
        ("abcd", ["d", "bc"], "a"),
        ("end", ["ende"], "end"),
        ("", ["a"], ""),
        ("a", ["a"], ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_a_stream_ends_where_the_text_does(text: str, stop: list[str], wanted: str, size: int) -> None:
    assert cut(text, stop) == wanted
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(cut_stream(pieces, stop)) == wanted


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0}),
        *({"top_k": -1}, {"top_k": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}),
        *({"top_p": 1.1}, {"seed": -1}, {"seed": 1.5}, {"stop": [""]}, {"stop": [3]}),
        *({"temperature": "1"}, {"temperature": True}, {"temperature": None}, {"top_p": "a"}, {"stop": None}),
        *({"stop": 3}, {"stop": "\ud800"}, {"min_p": [1]}, {"repetition_penalty": True}),
    ],
)
def test_what_cannot_be_sampled_by_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"seed": 3}, {"top_k": 5}, {"min_p": 0.1}])
def test_what_draws_needs_a_temperature(options: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=f"{next(iter(options))} only matters when tokens are drawn.*give a temperature"
    ):
        Sampling(**options)
    assert not Sampling(temperature=0.1, **options).greedy


def test_one_stop_text_may_stand_alone() -> None:
    assert Sampling(stop="\n").stop == ("\n",)
    assert Sampling(stop=["\n"]) == Sampling(stop=("\n",))


def test_answers_to_pictures_are_drawn_too(seeing: Any) -> None:
    def chat(shade: int) -> list[dict[str, Any]]:
        picture = Image.new("RGB", (8, 8), (shade, 0, 0))
        return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]

    engine = NativeEngine(*seeing)
    together = answers(engine, [chat(0), chat(250), [{"role": "user", "content": "And without?"}]])
    assert answers(engine, [chat(0)]) == together[:1]
    stop = [together[0][3]]
    assert answers(engine, [chat(0)], Sampling(0.8, 0.9, 3, stop)) == [cut(together[0], stop)]
