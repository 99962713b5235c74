"""The most memory that a piece of work needs."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from types import TracebackType

import psutil
import torch

INTERVAL = 0.05
"""Seconds between two looks at the process."""


class PeakMemory:
    """Watches the memory of the accelerator, or of this process if there is none, during the block."""

    mib: int
    """The peak, once the block has ended."""

    def __enter__(self) -> PeakMemory:
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        # What earlier work left behind is not this block's. Freed memory goes back to the system at once only if asked.
        gc.collect()
        with suppress(AttributeError, TypeError):  # glibc has it
            ctypes.CDLL(None).malloc_trim(0)
        self._peak = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        process = psutil.Process()
        while True:
            self._peak = max(self._peak, process.memory_info().rss)
            if self._done.wait(INTERVAL):
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._watch.join()
        self.mib = (torch.cuda.max_memory_allocated() if self._on_gpu else self._peak) // 2**20
