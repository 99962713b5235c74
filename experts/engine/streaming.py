"""Streams text as a thread writes it; the reader may stop reading at any time."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator
from threading import Event, Thread, current_thread

from transformers import TextIteratorStreamer


def stream_from_thread(write: Callable[[Event], None], pieces: TextIteratorStreamer) -> Generator[str, None, None]:
    """Yields what `write` puts into `pieces` while it is still writing, in a thread of its own.

    Args:
        write: gets an event that is set once nobody reads any more. What it raises is raised after the last piece.
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
    atexit.register(stop)  # a program may end while a stream is open, but not while PyTorch computes
    writer.start()
    try:
        yield from filter(None, pieces)
    finally:
        # Not for ever: the garbage collector closes a stream in whatever thread it runs in, which may be the writer, or
        # may hold a lock that the writer waits for.
        stop(patience=1.0)
    if errors:
        raise errors[0]
