"""lm-eval-harness: the model named "selfadapt", the cache of its responses, and tasks by name."""

from selfadapt.harness.lm import SelfAdaptiveLM

__all__ = ["SelfAdaptiveLM"]
