"""Three to seven numbers below 100, such as "7 3 12 40"."""

from __future__ import annotations

import random
from statistics import median

from experts.text_to_lora.made.family import Family, asked


def draw(rng: random.Random) -> list[int]:
    return [rng.randrange(100) for _ in range(rng.randint(3, 7))]


NUMBERS = Family(
    "numbers",
    draw,
    lambda numbers: " ".join(map(str, numbers)),
    (
        asked(
            "largest",
            max,
            "You are given several numbers. Answer with the largest of them.",
            "Find the biggest number.",
            "What is the maximum of the list?",
            "The highest value among a handful of numbers",
            "Pick out the number that no other number exceeds.",
            "4 19 6 -> 19",
            "Return max(numbers).",
            "Somebody reads out scores. Say the best score.",
        ),
        asked(
            "smallest",
            min,
            "You are given several numbers. Answer with the smallest of them.",
            "Find the lowest number.",
            "What is the minimum of the list?",
            "The least value among a handful of numbers",
            "Pick out the number below all the others.",
            "14 9 60 -> 9",
            "Return min(numbers).",
            "Somebody reads out prices. Say the cheapest.",
        ),
        asked(
            "even_ones",
            lambda numbers: [number for number in numbers if number % 2 == 0],
            "You are given several numbers. Write down those that are even, in the order given, or none.",
            "Keep only the even numbers.",
            "Which of the numbers can be divided by two?",
            "The even members of a list",
            "Drop every odd number and repeat the rest.",
            "7 4 10 3 -> 4 10",
            "Filter the list for number % 2 == 0.",
            "Leave out whatever is not a multiple of two.",
        ),
        asked(
            "median",
            lambda numbers: f"{median(numbers):g}",
            "You are given several numbers. Answer with their median.",
            "Find the middle value once the numbers are in order.",
            "What is the median?",
            "The central value of a small sample",
            "Sort the numbers and take the one in the middle; of two in the middle, take the mean.",
            "9 2 5 -> 5",
            "Return statistics.median(numbers).",
            "Half of the numbers lie above it and half below it: which value is it?",
        ),
    ),
)
