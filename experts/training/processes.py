"""The processes that train together."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among those that `torchrun` or `accelerate launch` started.

    Where there is no accelerator they talk over gloo. accelerate must be told so, at its first call: else each process
    takes itself for the only one.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
