from __future__ import annotations

import time

import pytest
import torch

from selfadapt.grid.memory import INTERVAL, PeakMemory


@pytest.mark.skipif(torch.cuda.is_available(), reason="it watches the accelerator")
def test_it_sees_what_is_gone_at_the_end_and_not_what_was_gone_before() -> None:
    torch.ones(400 * 2**18).sum()  # 400 MiB
    with PeakMemory() as before:
        pass
    with PeakMemory() as memory:
        block = torch.ones(200 * 2**18)
        time.sleep(10 * INTERVAL)
        del block
    assert 150 < memory.mib - before.mib < 300
