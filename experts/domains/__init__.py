"""Domains: where prompts come from, and what an answer earns."""

from experts.domains.base import Completion, Domain, Message, Split, text_of
from experts.domains.jsonl import Jsonl
from experts.domains.reasoning_gym import ReasoningGym
from experts.domains.rewards import REWARDS
from experts.domains.vqa import Vqa
from experts.domains.word_problems import WordProblems

KINDS = {"reasoning_gym": ReasoningGym, "jsonl": Jsonl, "word_problems": WordProblems, "vqa": Vqa}

__all__ = [
    "KINDS",
    "REWARDS",
    "Completion",
    "Domain",
    "Jsonl",
    "Message",
    "ReasoningGym",
    "Split",
    "Vqa",
    "WordProblems",
    "text_of",
]
