"""Prompts that arrive together are dispatched together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from dispatch import Dispatcher
from experts.mixture import Mixture
from experts.outside.chats import Chat

MOST = 64
"""The most prompts that are dispatched at once."""

Prompts = Sequence[str | Chat]


class Dispatched(NamedTuple):
    """The mixture of a request's prompts, and that of all prompts dispatched with them: dispatchers that write experts
    keep them for as long as the mixture that they gave exists."""

    mixture: Mixture
    of_all: Mixture


class DispatchedTogether:
    """Dispatches together, in a thread, all prompts that arrived while those before them were dispatched."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Dispatcher, Prompts, asyncio.Future[Dispatched]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, dispatcher: Dispatcher, prompts: Prompts) -> Dispatched:
        """The mixture of each prompt.

        Raises:
            UserError: as the dispatcher does; what is wrong with one request's prompts does not affect the others.
        """
        future: asyncio.Future[Dispatched] = asyncio.get_running_loop().create_future()
        self._waiting.append((dispatcher, prompts, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await future

    async def _ask(self) -> None:
        while self._waiting:
            taken = [self._waiting.pop(0)]
            count = len(taken[0][1])
            while self._waiting and self._waiting[0][0] is taken[0][0] and count + len(self._waiting[0][1]) <= MOST:
                taken.append(self._waiting.pop(0))
                count += len(taken[-1][1])
            answers = await asyncio.to_thread(_dispatched, taken[0][0], [prompts for _, prompts, _ in taken])
            for (_, _, future), answer in zip(taken, answers, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._asking = None


def _dispatched(dispatcher: Dispatcher, asked: Sequence[Prompts]) -> list[Dispatched | Exception]:
    try:
        whole = dispatcher([prompt for prompts in asked for prompt in prompts])
    except Exception as error:
        if len(asked) == 1:
            return [error]
        return [answer for prompts in asked for answer in _dispatched(dispatcher, [prompts])]
    answers: list[Dispatched | Exception] = []
    start = 0
    for prompts in asked:
        answers.append(Dispatched(whole.rows(range(start, start + len(prompts))), whole))
        start += len(prompts)
    return answers
