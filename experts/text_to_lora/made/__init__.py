"""Tasks that the library makes: a few hundred, in families, for text-to-LoRA networks to learn from."""

from __future__ import annotations

from collections.abc import Callable

from experts.text_to_lora.made.assignments import ASSIGNMENTS
from experts.text_to_lora.made.fraction import FRACTION
from experts.text_to_lora.made.measure import MEASURE
from experts.text_to_lora.made.number import NUMBER
from experts.text_to_lora.made.numbers import NUMBERS
from experts.text_to_lora.made.pair import PAIR
from experts.text_to_lora.tasks import Task

FAMILIES = (NUMBERS, NUMBER, PAIR, FRACTION, MEASURE, ASSIGNMENTS)


def made_tasks() -> list[Task]:
    """The tasks of all families; `split` says which families are held out."""
    return [task for family in FAMILIES for task in family.make()]


MADE: dict[str, Callable[[], list[Task]]] = {"made": made_tasks}
"""Name → the tasks that the library makes under it."""
