"""Text as it is written, by a thread that whoever reads it can leave alone at any time."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator
from threading import Event, Thread, current_thread

from transformers import TextIteratorStreamer


def stream_from_thread(write: Callable[[Event], None], pieces: TextIteratorStreamer) -> Generator[str, None, None]:
    """What `write` puts into `pieces`, while it still does so in a thread of its own.

    Args:
        write: is given an event, after which nobody reads any more. What it raises is raised after the last piece.
    """
    errors: list[BaseException] = []
    abandoned = Event()

    def run() -> None:
        try:
            write(abandoned)
        except BaseException as error:
            errors.append(error)
        finally:
            pieces.end()
            atexit.unregister(stop)

    def stop(patience: float | None = None) -> None:
        abandoned.set()
        if writer.is_alive() and writer is not current_thread():
            writer.join(patience)

    writer = Thread(target=run, daemon=True)
    atexit.register(stop)  # a program may end while a stream is open, but not while PyTorch calculates
    writer.start()
    try:
        yield from filter(None, pieces)
    finally:
        # Not for ever: the garbage collector closes a stream in whatever thread it runs, which may be the writer, or
        # hold a lock that the writer waits for.
        stop(patience=1.0)
    if errors:
        raise errors[0]
