"""Why a REINFORCE run may not learn, as far as its first steps tell; docs/not_learning.md says more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

STEPS = 3
"""The step after which a run is checked, once."""


def advice(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on what stands in the way of learning; None if nothing does.

    Args:
        entries: log entries of some steps: `accuracy`, the share of samples that were right; `unanimous`, the share of
            prompts whose samples all earned the same; `truncated`, the share of samples that were cut off.
    """
    right, unanimous, truncated = (
        fmean(entry.get(name) or 0.0 for entry in entries) for name in ("accuracy", "unanimous", "truncated")
    )
    if right == 0 and unanimous >= 0.9:  # the user's own reward may be any number, and teach even below 1
        return (
            "no sample has been right so far, and what is never right is never reinforced: look at the samples "
            "(--log-completions), put solved examples into the prompt (shots, if the domain has them), or raise "
            "max_new_tokens"
        )
    if unanimous >= 0.9:
        return (
            f"the samples of {unanimous:.0%} of the prompts all earned the same, and nothing is learned from these: "
            "draw more samples, raise temperature, or choose problems that are sometimes right"
        )
    if truncated >= 0.5:
        return (
            f"{truncated:.0%} of the samples were cut off at max_new_tokens: the first lesson will be to write less; "
            "raise max_new_tokens if answers need to be longer"
        )
    return None
