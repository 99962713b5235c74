"""Tasks that the library makes: a few hundred, in families, for text-to-LoRA networks to learn from."""

from __future__ import annotations

from collections.abc import Callable

from experts.text_to_lora.made.address import ADDRESS
from experts.text_to_lora.made.assignments import ASSIGNMENTS
from experts.text_to_lora.made.boxes import BOXES
from experts.text_to_lora.made.clock import CLOCK
from experts.text_to_lora.made.date import DATE
from experts.text_to_lora.made.fraction import FRACTION
from experts.text_to_lora.made.gym import gym_tasks
from experts.text_to_lora.made.letters import LETTERS
from experts.text_to_lora.made.match import MATCH
from experts.text_to_lora.made.measure import MEASURE
from experts.text_to_lora.made.moves import MOVES
from experts.text_to_lora.made.number import NUMBER
from experts.text_to_lora.made.numbers import NUMBERS
from experts.text_to_lora.made.order import ORDER
from experts.text_to_lora.made.pair import PAIR
from experts.text_to_lora.made.path import PATH
from experts.text_to_lora.made.record import RECORD
from experts.text_to_lora.made.sentence import SENTENCE
from experts.text_to_lora.made.shopping import SHOPPING
from experts.text_to_lora.made.story import STORY
from experts.text_to_lora.made.weather import WEATHER
from experts.text_to_lora.made.word import WORD
from experts.text_to_lora.made.word_list import WORD_LIST
from experts.text_to_lora.tasks import Task

FAMILIES = (
    ADDRESS,
    ASSIGNMENTS,
    BOXES,
    CLOCK,
    DATE,
    FRACTION,
    LETTERS,
    MATCH,
    MEASURE,
    MOVES,
    NUMBER,
    NUMBERS,
    ORDER,
    PAIR,
    PATH,
    RECORD,
    SENTENCE,
    SHOPPING,
    STORY,
    WEATHER,
    WORD,
    WORD_LIST,
)


def made_tasks() -> list[Task]:
    """The tasks of all families; `split` says which families are held out."""
    return [task for family in FAMILIES for task in family.make()]


MADE: dict[str, Callable[[], list[Task]]] = {"made": made_tasks, "reasoning_gym": gym_tasks}
"""Name → the tasks that the library makes under it."""
