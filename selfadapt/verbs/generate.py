"""`selfadapt generate PROMPT…`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from selfadapt.verbs import show
from selfadapt.verbs.loading import FromOptions, Loading


def generate(
    prompts: Positional[tuple[str, ...]],
    dispatch: str | None = None,
    model: str | None = None,
    library: Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None,
    base: FromOptions = Loading(),
    engine: Literal["native", "vllm"] = "native",
    json: bool = False,
) -> None:
    """Answer prompts with the base, an expert, or a mixture. In a terminal a line in brackets says who answered.

    Args:
        prompts: one user turn each.
        dispatch: a dispatcher such as "embedding", which lets the prompt decide; "none" for the plain base; the name of
            an expert; or a MIX.json. By default "embedding", where there are experts.
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        max_new_tokens: the most tokens in an answer.
        temperature: what logits are divided by before a token is drawn; 0 takes the most likely one.
        top_p: draw from the fewest tokens that together have this probability.
        top_k: draw from this many of the most likely tokens; 0 draws from all.
        min_p: draw from the tokens with at least this share of the most likely one's probability.
        repetition_penalty: above 1 makes tokens that the prompt or the answer already has less likely.
        seed: draws the same answers again.
        stop: texts that end an answer and are not part of it.
        system_prompt: a system message before every prompt.
        chat_template_kwargs: arguments of the base's chat template, such as Qwen3's "enable_thinking False".
        base: how the base is loaded.
        engine: what runs the base: this library itself, or vLLM, where it is installed (docs/serving.md).
        json: print prompts and answers as JSON.
    """
    from dispatch import DEFAULT, Fixed
    from experts.engine import Sampling
    from experts.outside.chats import with_system_prompt
    from experts.outside.errors import UserError, check_whole
    from selfadapt.base_models import BaseOptions
    from selfadapt.two_pass import SelfAdaptiveModel

    if not prompts:
        raise UserError("there is no prompt to answer; give one or more")
    check_whole("--max-new-tokens", max_new_tokens)
    sampling = Sampling(temperature, top_p, seed, stop, top_k, min_p, repetition_penalty)
    options: BaseOptions = {"chat_template_kwargs": chat_template_kwargs or {}, **base.options()}
    adaptive = SelfAdaptiveModel.from_pretrained(model, library, dispatch, engine=engine, **options)
    how: Any = {"max_new_tokens": max_new_tokens, "sampling": sampling}
    if len(prompts) == 1 and not json and sys.stdout.isatty():
        mixture = adaptive.dispatch(prompts)
        for piece in adaptive.engine.stream(*with_system_prompt(prompts, system_prompt), mixture=mixture, **how):
            print(piece, end="", flush=True)
        print(f"\n[{mixture}]")
        return
    answers = adaptive.generate(prompts, system_prompt=system_prompt, **how)
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
    dispatch = dispatch or ("none" if isinstance(adaptive.dispatcher, Fixed) else DEFAULT)
    show({"dispatch": dispatch, "answers": document}, json, "\n\n".join(map(written, answers)))
