"""Domains: where prompts come from, and what an answer earns."""

from experts.domains import code, multiple_choice
from experts.domains.base import Completion, Domain, Message, Split, text_of
from experts.domains.code import Code
from experts.domains.gsm8k import Gsm8k
from experts.domains.hendrycks_math import HendrycksMath
from experts.domains.jsonl import Jsonl
from experts.domains.judges.rewards import REWARDS
from experts.domains.multiple_choice import MultipleChoice
from experts.domains.reasoning_gym import ReasoningGym
from experts.domains.vqa import Vqa
from experts.domains.word_problems import WordProblems

# A class with a field `kind` stands here once for each of its data sets.
KINDS: dict[str, type] = {
    "reasoning_gym": ReasoningGym,
    "jsonl": Jsonl,
    "word_problems": WordProblems,
    "gsm8k": Gsm8k,
    "math": HendrycksMath,
    "vqa": Vqa,
    **dict.fromkeys(multiple_choice.DATASETS, MultipleChoice),
    **dict.fromkeys(code.DATASETS, Code),
}

__all__ = [
    "KINDS",
    "REWARDS",
    "Code",
    "Completion",
    "Domain",
    "Gsm8k",
    "HendrycksMath",
    "Jsonl",
    "Message",
    "MultipleChoice",
    "ReasoningGym",
    "Split",
    "Vqa",
    "WordProblems",
    "text_of",
]
