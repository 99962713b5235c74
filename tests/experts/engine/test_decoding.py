"""What is decoded row by row, with rows that leave and rows that come, is what transformers' `generate` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MptConfig

from experts.engine import NativeEngine
from experts.engine.decoding import Choose, Writing, can_decode, decode, end_tokens, greedy, most_likely, sampled
from experts.engine.growing_cache import growing_cache, join, select
from experts.library import ExpertLibrary
from experts.mixture import Mixture

PROMPTS = ["a", "a much longer prompt than the first one", "x", "what is this?", "a", "bb", "and one more of them"]
NEW = 24


def tokens_of(tokenizer: Any, prompts: list[str], begin: str = "") -> list[list[int]]:
    return [tokenizer(begin + prompt)["input_ids"] for prompt in prompts]


def generated(model: Any, ids: list[int], **options: Any) -> list[int]:
    """By transformers, alone, up to its end."""
    row = torch.tensor([ids])
    with torch.no_grad():
        output = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, **options)
    return output[0, len(ids) :].tolist()


def writing(model: Any, choose: Choose) -> Writing:
    return Writing(NEW, end_tokens(model.generation_config), choose)


@pytest.fixture
def talkative(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    """A model whose answers end at different lengths: each at a token that it says sooner or later."""
    tiny_model.generation_config.eos_token_id = None
    said = [generated(tiny_model, ids, do_sample=False) for ids in tokens_of(tiny_tokenizer, PROMPTS)]
    tiny_model.generation_config.eos_token_id = [answer[3 * row] for row, answer in enumerate(said) if row % 2]
    return tiny_model


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("begin", ["", "what all of them begin with: "])
def test_decoding_is_greedy_generation(talkative: Any, tiny_tokenizer: Any, rows_at_once: int, begin: str) -> None:
    ids = tokens_of(tiny_tokenizer, PROMPTS, begin)
    wanted = [generated(talkative, row, do_sample=False) for row in ids]
    with torch.no_grad():
        answers = dict(decode(talkative, ids, writing(talkative, most_likely), rows_at_once=rows_at_once))
    assert [answers[row] for row in range(len(ids))] == wanted
    assert len({*map(len, wanted)}) > 2, "no row leaves before another"


def test_attention_that_counts_columns_reads_no_holes(tiny_tokenizer: Any) -> None:
    config = MptConfig(vocab_size=len(tiny_tokenizer), d_model=32, n_layers=2, n_heads=4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    masks: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(
        lambda module, args, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True
    )
    ids = tokens_of(tiny_tokenizer, PROMPTS, "what all of them begin with: ")
    with torch.no_grad():
        answered = dict(decode(model, ids, writing(model, most_likely), rows_at_once=3))
    assert answered.keys() == set(range(len(ids)))
    assert all((mask.diff(dim=1) >= 0).all() for mask in masks)


def test_the_checkpoints_penalty_counts(talkative: Any, tiny_tokenizer: Any) -> None:
    ids = tokens_of(tiny_tokenizer, PROMPTS)
    plain = [generated(talkative, row, do_sample=False) for row in ids]
    talkative.generation_config.repetition_penalty = 1.7
    choose = greedy(talkative.generation_config)
    assert choose is not None
    with torch.no_grad():
        answers = dict(decode(talkative, ids, writing(talkative, choose), rows_at_once=3))
    assert [answers[row] for row in range(len(ids))] == [generated(talkative, row, do_sample=False) for row in ids]
    assert [answers[row] for row in range(len(ids))] != plain


@pytest.mark.parametrize("asked", [{"no_repeat_ngram_size": 2}, {"stop_strings": ["."]}, {"forced_eos_token_id": 3}])
def test_what_else_a_checkpoint_asks_for_is_left_to_generate(talkative: Any, asked: dict[str, Any]) -> None:
    assert greedy(GenerationConfig(**asked)) is None
    usual = {"repetition_penalty": 1.1, "pad_token_id": 0, "bos_token_id": 1}
    assert greedy(GenerationConfig(**usual, do_sample=True, temperature=0.7, top_k=20, top_p=0.8, eos_token_id=[1, 2]))


def test_rows_of_many_mixtures_leave_and_come(library: ExpertLibrary, talkative: Any, tiny_tokenizer: Any) -> None:
    model = library.load(talkative)
    prompts = PROMPTS * 2
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 0.4], [0.0, 1.0]])[torch.arange(len(prompts)) % 4]
    mixture = Mixture(("a", "b"), weights)
    engine = NativeEngine(model, tiny_tokenizer)
    alone = [
        engine.generate([prompt], max_new_tokens=NEW, mixture=mixture.rows([row]))[0]
        for row, prompt in enumerate(prompts)
    ]
    assert can_decode(model)
    for rows_at_once in (3, 5, 32):
        assert engine.generate(prompts, max_new_tokens=NEW, mixture=mixture, batch_size=rows_at_once) == alone
    assert len({*alone}) > len({*PROMPTS}), "the mixtures all say the same"


def test_samples_come_from_the_models_distribution(tiny_model: Any, tiny_tokenizer: Any) -> None:
    (ids,) = tokens_of(tiny_tokenizer, ["a"])
    with torch.no_grad():
        wanted = (tiny_model(torch.tensor([ids])).logits[0, -1] / 0.7).softmax(0)
        torch.manual_seed(0)
        drawn = [
            answer[0] for _, answer in decode(tiny_model, [ids] * 4000, Writing(1, [], sampled(0.7)), rows_at_once=4000)
        ]
    often = torch.bincount(torch.tensor(drawn), minlength=len(wanted)) / len(drawn)
    deviation = (often - wanted) / (wanted * (1 - wanted) / len(drawn)).sqrt().clamp(min=1e-9)
    assert deviation[wanted > 0.002].abs().max() < 5


def test_a_cache_loses_and_gains_rows(tiny_model: Any) -> None:
    config = tiny_model.config
    torch.manual_seed(0)

    def states(rows: int, tokens: int) -> torch.Tensor:
        return torch.randn(rows, config.num_key_value_heads, tokens, config.hidden_size // config.num_attention_heads)

    one, other = states(3, 5), states(2, 4)
    caches = [growing_cache(config), growing_cache(config)]
    for cache, own in zip(caches, (one, other), strict=True):
        for layer in range(config.num_hidden_layers):
            cache.update(own, -own, layer)
    cache = caches[0]
    select(cache, torch.tensor([2, 0]), 2)
    join(cache, caches[1])
    new = states(4, 1)
    for layer in range(config.num_hidden_layers):
        keys, values = cache.update(new, -new, layer)
        assert torch.equal(keys[:2, :, 1:4], one[[2, 0], :, 2:])
        assert torch.equal(keys[2:, :, :4], other)
        assert torch.equal(keys[:, :, 4:], new)
        assert torch.equal(keys[:2, :, 0], torch.zeros_like(keys[:2, :, 0]))
        assert torch.equal(values, -keys)


def test_where_answers_end() -> None:
    for ends, wanted in ((None, []), (5, [5]), ([5, 6], [5, 6])):
        assert end_tokens(GenerationConfig(eos_token_id=ends)) == wanted
