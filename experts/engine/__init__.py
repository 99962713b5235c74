"""Runs a base that carries experts: answers, streams and likelihoods, each row under its mixture.

`Engine` is what every engine can do. `NativeEngine` needs only transformers and PEFT; `experts.engine.vllm`, which must
be imported by that name, runs the base inside vLLM. `Population` is a second way to decode, for many mixtures on the
same few prompts. The other names serve those who run a model themselves.
"""

from experts.engine.base import Engine
from experts.engine.constrained import Constraint, constraint_of
from experts.engine.context import check_context, context_of
from experts.engine.forward import allows_holes, evaluating, last_positions, mixed, position_ids
from experts.engine.native import NativeEngine
from experts.engine.population import Population
from experts.engine.sampling import GREEDY, Sampling, check_sampling

__all__ = [
    "GREEDY",
    "Constraint",
    "Engine",
    "NativeEngine",
    "Population",
    "Sampling",
    "allows_holes",
    "check_context",
    "check_sampling",
    "constraint_of",
    "context_of",
    "evaluating",
    "last_positions",
    "mixed",
    "position_ids",
]
