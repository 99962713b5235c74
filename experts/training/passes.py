"""Which rows pass through a base together: those of about one length, so that little of a pass is padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

APART, APART_ELSEWHERE = {"cpu": 256}, 4096
"""The cost of one more pass, in tokens that could have passed meanwhile: the weights are read once more."""


def apart_on(device: torch.device) -> int:
    """The cost of one more pass on a device, in tokens."""
    return APART.get(device.type, APART_ELSEWHERE)


def alike(lengths: Sequence[int], apart: int, at_most: int | None = None) -> list[list[int]]:
    """Groups rows of about the same length, each group padded to its longest, for as few tokens as possible.

    Args:
        lengths: the rows' lengths, in tokens.
        apart: the cost of one more group, in tokens.
        at_most: rows in one group; None sets no limit.
    """
    most = at_most or len(lengths)
    rows = sorted(range(len(lengths)), key=lengths.__getitem__)
    # For the n shortest rows, the cheapest groups: their cost, and where the last group begins.
    cheapest = [(0, 0)]
    for n in range(1, len(rows) + 1):
        longest = lengths[rows[n - 1]]
        firsts = range(max(0, n - most), n)
        cheapest.append(min((cheapest[first][0] + apart + (n - first) * longest, first) for first in firsts))
    groups, n = [], len(rows)
    while n:
        groups.append(rows[cheapest[n][1] : n])
        n = cheapest[n][1]
    return groups[::-1]
