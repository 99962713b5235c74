"""Requests of many calls in one vLLM engine; each call gets its own outputs."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import Any


class Requests:
    """A `vllm.LLM`'s engine for calls and streams that overlap, in one thread or in many.

    The engine runs everybody's requests in one batch, one step at a time. Whoever waits for an output makes the next
    step, unless another thread is making it; an output is kept for the call that asked for it.
    """

    def __init__(self, llm: Any) -> None:
        self._engine = llm.llm_engine
        self._numbers = itertools.count()
        self._outputs: dict[str, deque[Any]] = {}  # by request, not fetched yet
        self._news = Condition()
        self._stepping = False
        self._coming = 0  # threads that want to add or end requests between two steps

    def run(
        self, ids: Sequence[list[int]], loras: Sequence[Any], parameters: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields the outputs of some requests as they come: the request's index, and vLLM's `RequestOutput`.

        Args:
            ids: the prompts' tokens.
            loras: each prompt's `LoRARequest`; None for the base.
            parameters: each prompt's `SamplingParams`.
        """
        names = [f"selfadapt-{next(self._numbers)}" for _ in ids]
        waiting = dict(zip(names, range(len(names)), strict=True))
        with self._between_steps():
            self._outputs |= {name: deque() for name in names}
            inside = [
                self._engine.add_request(name, {"prompt_token_ids": tokens}, own, lora_request=lora)
                for name, tokens, own, lora in zip(names, ids, parameters, loras, strict=True)
            ]
        try:
            while waiting:
                self._wait_for(list(waiting))
                for name in list(waiting):
                    while self._outputs[name]:
                        output = self._outputs[name].popleft()
                        index = waiting[name]
                        if output.finished:
                            del waiting[name]
                        yield index, output
        finally:
            with self._between_steps():
                if waiting:
                    self._engine.abort_request([inside[index] for index in waiting.values()], internal=True)
                for name in names:
                    del self._outputs[name]

    def _wait_for(self, names: list[str]) -> None:
        """Returns when one of these requests has an output."""

        def come() -> bool:
            return any(self._outputs[name] for name in names)

        while True:
            with self._news:
                self._news.wait_for(lambda: come() or not (self._stepping or self._coming))
                if come():
                    return
                self._stepping = True
            outputs: list[Any] = []
            try:
                outputs = self._engine.step()
            finally:
                with self._news:
                    for output in outputs:
                        if output.request_id in self._outputs:  # else it has just been abandoned
                            self._outputs[output.request_id].append(output)
                    self._stepping = False
                    self._news.notify_all()

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Within the block the engine makes no step."""
        with self._news:
            self._coming += 1
            self._news.wait_for(lambda: not self._stepping)
            try:
                yield
            finally:
                self._coming -= 1
                self._news.notify_all()
