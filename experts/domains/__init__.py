"""Domains: where prompts come from, and what an answer earns.

A domain is one file here and one line in `HOMES`, the table of all of them.
"""

from importlib import import_module

from experts.domains.base import (
    Completion,
    Domain,
    Message,
    Split,
    answers_of,
    check_domain,
    is_judged,
    load_rows,
    own_reward,
    reinforced,
    scores_of,
    text_of,
)

# The values of a recipe's `domain.kind` → the file and class that each names. A class with a field `kind` is listed
# once for each of its data sets.
HOMES = {
    "reasoning_gym": "reasoning_gym.ReasoningGym",
    "jsonl": "jsonl.Jsonl",
    "hub": "hub.Hub",
    "module": "module.Module",
    "word_problems": "word_problems.WordProblems",
    "gsm8k": "gsm8k.Gsm8k",
    "math": "hendrycks_math.HendrycksMath",
    "vqa": "vqa.Vqa",
    **dict.fromkeys(
        ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande"),
        "multiple_choice.MultipleChoice",
    ),
    **dict.fromkeys(("mbpp", "humaneval", "mbpp_pro"), "code.Code"),
}


def _class(home: str) -> type[Domain]:
    module, name = home.split(".")
    return getattr(import_module(f"{__name__}.{module}"), name)


KINDS: dict[str, type[Domain]] = {kind: _class(home) for kind, home in HOMES.items()}

__all__ = [
    "KINDS",
    "Completion",
    "Domain",
    "Message",
    "Split",
    "answers_of",
    "check_domain",
    "is_judged",
    "load_rows",
    "own_reward",
    "reinforced",
    "scores_of",
    "text_of",
]
