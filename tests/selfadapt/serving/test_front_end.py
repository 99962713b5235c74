"""A chat front end that knows OpenAI's protocol alone: Gradio's, as `gr.load_chat` makes it for any such address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from experts.engine import NativeEngine
from experts.mixture import Mixture
from tests.selfadapt.serving.conftest import Running

gradio = pytest.importorskip("gradio", reason="Gradio is not installed")
QUESTIONS = ("Which animal barks?", "And which one meows?")
LONGEST = 100  # tokens of an answer; the server's room is for both answers and questions
# Markdown does what it likes with white space and its own marks: they are not compared.
SHOWN = r"""([turn, wanted]) => {
    const bare = text => text.replace(/[\s\x00-\x1f*_#`~<>|\\-]/g, "")
    const bots = document.querySelectorAll("[data-testid=bot]")
    return bots.length > turn && bare(bots[turn].textContent).includes(bare(wanted))
}"""


@pytest.mark.long
@pytest.mark.parametrize(("model", "weights"), [("auto", {"b": 1.0}), ("mix:a=0.5,b=0.2", {"a": 0.5, "b": 0.2})])
def test_a_front_end_shows_what_the_library_answers(
    start: Callable[..., Running],
    browser: Any,
    tiny_model: Any,
    tiny_tokenizer: Any,
    model: str,
    weights: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    words = [token for text, token in tiny_tokenizer.get_vocab().items() if text.isascii() and text.isalpha()]
    with torch.no_grad():  # it asks for drawn answers: make them the likeliest ones (1e4 is too little), and readable
        tiny_model.model.norm.weight.mul_(1e8)
        others = torch.ones(tiny_model.config.vocab_size, dtype=torch.bool).index_fill(0, torch.tensor(words), False)
        tiny_model.get_output_embeddings().weight[others] = 0
    server = start(tokens=500)
    answers = next(
        short
        for first in range(9)
        if (short := answers_that_end(server.engine, Mixture.of(weights), ends=words[first::9])) is not None
    )
    page = gradio.load_chat(f"{server.url}/v1/", model=model, token="none")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        tab = browser.new_page()
        tab.set_default_timeout(60_000)
        tab.goto(address)
        for turn, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
            tab.locator("textarea").first.fill(question)
            tab.locator("textarea").first.press("Enter")
            tab.wait_for_function(SHOWN, arg=[turn, answer])
    finally:
        page.close()


def answers_that_end(engine: NativeEngine, mixture: Mixture, *, ends: list[int]) -> list[str] | None:
    """The answers of one chat, or None where one is empty or does not end by itself.

    A tiny base may write one word for ever, and which tokens it does so with depends on the machine. The engine keeps
    `ends` as the tokens that end an answer.
    """
    engine.generation_config.eos_token_id = ends
    chat: list[dict[str, str]] = []
    for question in QUESTIONS:
        chat.append({"role": "user", "content": question})
        short, longer = (
            engine.generate([chat], max_new_tokens=room, mixture=mixture)[0] for room in (LONGEST, LONGEST + 20)
        )
        if not short or short != longer:
            return None
        chat.append({"role": "assistant", "content": short})
    return [turn["content"] for turn in chat if turn["role"] == "assistant"]
