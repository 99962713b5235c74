"""OpenAI's clients talk to the server, and every answer is that of the same request alone."""

from __future__ import annotations

from typing import Any

import pytest

from experts.engine import Sampling
from experts.mixture import Mixture
from tests.selfadapt.serving.conftest import Running

USER = [{"role": "user", "content": "Which animal barks?"}]
WHO = {"tiny": {}, "a": {"a": 1.0}, "mix:a=0.7,b=0.2": {"a": 0.7, "b": 0.2}, "auto": {"b": 1.0}}


def alone(server: Running, prompt: Any, weights: dict[str, float], n: int = 1, new: int = 12, **sampling: Any) -> list[str]:
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
    assert chunk.usage == answer.usage
    assert chunk.model == answer.model
