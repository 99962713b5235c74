"""Answers to several prompts in one batch, each under a mixture of its own, as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from experts.engine.requests import Ended, Event, Request, Written
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.outside.pictures import text_tokenizer
from selfadapt.serving.served import Served
from selfadapt.serving.texts import GrowingText

LONGEST = 4000
"""The most characters in a prompt: whoever opens the page to others lends them the machine."""


@dataclass
class Answer:
    """An answer, as far as it is written."""

    text: str = ""
    tokens: int = 0
    ended: bool = False


def read(prompt: str | None) -> str:
    """The prompt that someone typed.

    Raises:
        UserError: if it is empty or too long.
    """
    text = (prompt or "").strip()
    if not text:
        raise UserError("there is no prompt yet; write one, or choose an example")
    if len(text) > LONGEST:
        raise UserError(f"the prompt has {len(text):,} characters; at most {LONGEST:,} are allowed here")
    return text


def answers(served: Served, prompts: Sequence[str], mixture: Mixture, new_tokens: int) -> Iterator[list[Answer]]:
    """Yields all answers so far, again and again until they are complete; closing the iterator cancels them.

    Raises:
        UserError: if a prompt does not fit the context, or the mixture names an expert that is not there.
        QueueFull, Stopped: as the batch does.
    """
    heard: SimpleQueue[Event] = SimpleQueue()
    ids = tokenize(served.engine.tokenizer, prompts)
    request = Request(ids, mixture, heard.put, max_new_tokens=new_tokens, held=mixture)
    growing = [GrowingText(text_tokenizer(served.engine.tokenizer), ()) for _ in prompts]
    rows = [Answer() for _ in prompts]
    served.batch.submit(request)
    try:
        while not all(row.ended for row in rows):
            events = [heard.get()]
            while not heard.empty():
                events.append(heard.get())
            for event in events:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Written):
                    rows[event.row].text += growing[event.row].add(event.token)
                    rows[event.row].tokens += 1
                elif isinstance(event, Ended):
                    rows[event.row].text += growing[event.row].end()
                    rows[event.row].ended = True
            yield rows
    finally:
        request.cancel()
