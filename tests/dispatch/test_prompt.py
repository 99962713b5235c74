"""The prompt dispatcher scores exactly what constrained decoding would, whatever is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch import Calibration, PromptDispatcher
from dispatch.prompt import asking
from experts.engine import tokenize
from experts.errors import UserError
from experts.library import ExpertLibrary

CATEGORIES = {"math": "Sums of numbers.", "maps": "Sums of distances.", "cats": "Questions about animals."}
PROMPTS = ["1 + 1", "What does a lion eat, and when does it sleep?", [{"role": "user", "content": "how far?"}]]


def by_hand(model: Any, tokenizer: Any, prompt: str, answers: list[str]) -> Tensor:
    """log p of each answer under constrained decoding, one token and one full forward at a time."""
    ids = [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for answer in answers]
    [start] = tokenize(tokenizer, [asking(CATEGORIES, prompt)])
    scores = []
    for own in ids:
        total = 0.0
        for depth, token in enumerate(own):
            allowed = sorted({other[depth] for other in ids if other[:depth] == own[:depth]})
            with torch.no_grad():
                logits = model(torch.tensor([start + own[:depth]])).logits[0, -1]
            total += logits[allowed].log_softmax(0)[allowed.index(token)]
        scores.append(total)
    return torch.tensor(scores)


def test_scores_are_those_of_constrained_decoding(tiny_model: Any, tiny_tokenizer: Any) -> None:
    dispatcher = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES, batch_size=2)
    for scores in (dispatcher.scores(PROMPTS), dispatcher.scores(PROMPTS)):  # the second time from the cache
        for row, prompt in enumerate(["1 + 1", PROMPTS[1], "how far?"]):
            names = by_hand(tiny_model, tiny_tokenizer, str(prompt), [*CATEGORIES])
            descriptions = by_hand(tiny_model, tiny_tokenizer, str(prompt), [*CATEGORIES.values()])
            torch.testing.assert_close(scores[row], torch.cat([names, descriptions]), atol=1e-4, rtol=1e-4)
    assert scores.exp()[:, :3].sum(1).tolist() == pytest.approx([1, 1, 1])


def test_a_row_does_not_depend_on_the_others(tiny_model: Any, tiny_tokenizer: Any) -> None:
    dispatcher = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES, soft=True)
    together = dispatcher(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(dispatcher([prompt]).weights[0], together.weights[row], atol=1e-4, rtol=1e-4)
    assert together.weights.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_hard_choice_confidence_and_abstention(tiny_model: Any, tiny_tokenizer: Any) -> None:
    soft = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES, soft=True)(PROMPTS)
    hard = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES)(PROMPTS)
    assert torch.equal(hard.weights.argmax(1), soft.weights.argmax(1))
    assert hard.weights.sum(1).tolist() == [1, 1, 1]
    assert hard.confidence is not None
    torch.testing.assert_close(hard.confidence, soft.weights.max(1).values)
    least = hard.confidence.sort().values[1].item()
    some = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES, least=least)(PROMPTS)
    assert sorted(some.weights.sum(1).tolist()) == [0, 1, 1]


def test_the_reader_is_the_expert_that_is_named(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> None:
    model: Any = library.load(tiny_model)
    categories = library.descriptions()
    base = PromptDispatcher(model, tiny_tokenizer, categories).scores(PROMPTS)
    read = PromptDispatcher(model, tiny_tokenizer, categories, expert="a").scores(PROMPTS)
    assert not torch.allclose(base, read, atol=1e-3)
    with model.disable_adapter():
        plain = PromptDispatcher(model, tiny_tokenizer, categories).scores(PROMPTS)
    torch.testing.assert_close(base, plain)
    model.set_adapter("a")
    alone = PromptDispatcher(model.merge_and_unload(), tiny_tokenizer, categories).scores(PROMPTS)
    torch.testing.assert_close(read, alone, atol=1e-3, rtol=1e-3)


def test_free_writing_abstains_unless_one_name_is_written(tiny_model: Any, tiny_tokenizer: Any) -> None:
    probe = PromptDispatcher(tiny_model, tiny_tokenizer, CATEGORIES, free=True)
    assert not probe(PROMPTS).weights.any()  # a random model names nothing
    letters = dict.fromkeys("aeiou,. ", "")
    weights = PromptDispatcher(tiny_model, tiny_tokenizer, letters, free=True)(PROMPTS).weights
    assert weights.sum(1).max() <= 1


def test_a_fitted_calibration_learns_its_labels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    scores = torch.randn(200, 6, generator=generator)
    scores[torch.arange(200), labels] += 4
    scores += torch.tensor([0, 9.0, 0, 0, 0, 5.0])  # names that are favoured whatever the question
    fitted = Calibration.fitted(scores, labels)
    assert ((scores @ fitted.weight + fitted.bias).argmax(1) == labels).float().mean() > 0.95
    fitted.write(tmp_path / "c.json", ["a", "b", "c"])
    read = Calibration.read(tmp_path / "c.json", ["a", "b", "c"])
    assert read is not None
    torch.testing.assert_close(read.weight, fitted.weight)
    assert Calibration.read(tmp_path / "c.json", ["a", "b"]) is None  # the library has changed since
    assert Calibration.read(tmp_path / "nothing.json", ["a"]) is None
    (tmp_path / "c.json").write_text('{"experts": ["a"], "weight": [1]}')
    with pytest.raises(UserError, match="damaged"):
        Calibration.read(tmp_path / "c.json", ["a"])


def test_centring_takes_off_what_descriptions_score_on_average() -> None:
    scores = torch.tensor([[0.0, 0, 0, -1, -2, -9], [0, 0, 0, -4, -1, -8], [0, 0, 0, -4, -3, -4]])
    calibration = Calibration.centred(scores)
    assert (scores @ calibration.weight + calibration.bias).argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close((scores @ calibration.weight + calibration.bias).mean(0), torch.zeros(3))
