"""`selfadapt generate PROMPT…`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from selfadapt.verbs import show


def generate(
    prompts: Positional[tuple[str, ...]],
    dispatch: str = "none",
    model: str | None = None,
    library: Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None,
    engine: Literal["native", "vllm"] = "native",
    json: bool = False,
) -> None:
    """Answer prompts with the base, an expert, or a mixture. In a terminal a line in brackets says who answered.

    Args:
        prompts: one user turn each.
        dispatch: "none" for the plain base; a dispatcher such as "embedding", which lets the prompt decide; the name of
            an expert; or a MIX.json.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository of the hub; by default those that come with the base.
        max_new_tokens: the most that an answer may have.
        temperature: what logits are divided by before a token is drawn; 0 takes the most likely one.
        top_p: draw from the fewest tokens that have this probability together.
        seed: draws the same answers again.
        stop: texts that end an answer, and do not belong to it.
        chat_template_kwargs: arguments of the base's chat template, such as Qwen3's "enable_thinking False".
        engine: what runs the base: this library itself, or vLLM, where it is installed (docs/serving.md).
        json: print prompts and answers as JSON.
    """
    from experts.engine import Sampling
    from experts.outside.errors import UserError, check_whole
    from selfadapt.two_pass import SelfAdaptiveModel

    if not prompts:
        raise UserError("there is no prompt to answer; give one or more")
    check_whole("--max-new-tokens", max_new_tokens)
    sampling = Sampling(temperature, top_p, seed, stop)
    adaptive = SelfAdaptiveModel.from_pretrained(
        model, library, dispatch, engine=engine, chat_template_kwargs=chat_template_kwargs or {}
    )
    if len(prompts) == 1 and not json and sys.stdout.isatty():
        mixture = adaptive.dispatch(prompts)
        how: Any = {"max_new_tokens": max_new_tokens, "mixture": mixture, "sampling": sampling}
        for piece in adaptive.engine.stream(prompts[0], **how):
            print(piece, end="", flush=True)
        print(f"\n[{mixture}]")
        return
    answers = adaptive.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
    written = str if sys.stdout.isatty() else attrgetter("text")  # a file or a program gets the answers alone
    document = [
        {
            "prompt": prompt,
            "text": answer.text,
            "mixture": answer.mixture[0],
            "confidence": None if answer.mixture.confidence is None else answer.mixture.confidence.item(),
            "seconds": asdict(answer.seconds),
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    show({"dispatch": dispatch, "answers": document}, json, "\n\n".join(map(written, answers)))
