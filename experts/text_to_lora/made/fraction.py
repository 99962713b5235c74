"""A fraction that may be cancelled or above one, such as "6/8" or "7/4"."""

from __future__ import annotations

import random
from fractions import Fraction
from math import gcd

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.number import in_words

DENOMINATORS = (
    *(2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 18, 20, 21, 24, 25, 27, 28, 30),
    *(35, 36, 40, 45, 50, 60, 70, 75, 90, 100, 120, 200),
)
"""No multiples of 16, whose three decimals would have to be rounded from a tie."""


def draw(rng: random.Random) -> tuple[int, int]:
    denominator = rng.choice(DENOMINATORS)
    return rng.randrange(1, 2 * denominator), denominator


def value(fraction: tuple[int, int]) -> Fraction:
    """The number itself, which prints in lowest terms: "3/4", or "2" if it is whole."""
    return Fraction(*fraction)


def mixed(fraction: tuple[int, int]) -> str:
    whole, rest = divmod(value(fraction), 1)
    return f"{whole} {rest}" if whole and rest else str(whole or rest)


FRACTION = Family(
    "fraction",
    draw,
    lambda fraction: f"{fraction[0]}/{fraction[1]}",
    (
        asked(
            "decimal",
            lambda fraction: f"{round(fraction[0] / fraction[1], 3):g}",
            "You are given a fraction. Answer with it as a decimal number, rounded to at most three decimals.",
            "Write the fraction as a decimal.",
            "What does a calculator show for this fraction, to three places?",
            "The decimal form, with three digits after the point where more would follow",
            "Carry out the division of top by bottom and round to thousandths.",
            "3/8 -> 0.375",
            "Return round(numerator / denominator, 3).",
            "This part of a metre is to be cut off. Give it with a decimal point, to the nearest thousandth.",
        ),
        asked(
            "percent",
            lambda fraction: f"{round(100 * fraction[0] / fraction[1], 1):g}%",
            "A fraction is given. Answer with it in percent, rounded to at most one decimal and with the sign %.",
            "Convert the fraction to a percentage.",
            "How many percent is this?",
            "The share in percent, to one decimal place at most",
            "Multiply the fraction by a hundred and append %.",
            "7/20 -> 35%",
            'Return f"{100 * numerator / denominator:.1f}%", less a final .0.',
            "Somebody scored the upper number of points out of the lower. Give the score with a percent sign.",
        ),
        asked(
            "reciprocal",
            lambda fraction: f"{fraction[1]}/{fraction[0]}",
            "Turn the fraction upside down. Do not cancel anything.",
            "Swap the numerator and the denominator.",
            "What is the reciprocal, not simplified?",
            "The fraction with its top and bottom exchanged",
            "Write the lower number first, then the slash, then the upper one.",
            "4/6 -> 6/4",
            'Return f"{denominator}/{numerator}".',
            "To divide by this fraction you would multiply by another. Write that one, uncancelled.",
        ),
        asked(
            "numerator",
            lambda fraction: fraction[0],
            "Look at the fraction as it is written. Answer with its numerator.",
            "Give the upper number of the fraction.",
            "Which number stands before the slash?",
            "The top of the fraction",
            "Delete the slash and everything to the right of it.",
            "10/15 -> 10",
            'Return fraction.split("/")[0].',
            "The lower number counts the slices of a cake and the upper one those eaten. How many were eaten?",
        ),
        asked(
            "denominator",
            lambda fraction: fraction[1],
            "Look at the fraction as it is written. Answer with its denominator.",
            "Give the lower number of the fraction.",
            "Which number stands after the slash?",
            "The bottom of the fraction",
            "Delete the slash and everything to the left of it.",
            "10/15 -> 15",
            'Return fraction.split("/")[1].',
            "The fraction counts equal slices of a cake. Into how many slices is one cake cut?",
        ),
        asked(
            "simplified",
            value,
            "The fraction can perhaps be cancelled. Write it in lowest terms, or as a whole number if it is one.",
            "Simplify the fraction.",
            "What is the same value with the smallest possible numerator and denominator?",
            "The fraction reduced as far as it goes",
            "Divide top and bottom by their greatest common divisor.",
            "28/24 -> 7/6",
            "Return Fraction(numerator, denominator).",
            "Say the same share with numbers as small as possible.",
        ),
        asked(
            "expanded",
            lambda fraction: f"{2 * fraction[0]}/{2 * fraction[1]}",
            "Multiply the numerator by two, and the denominator too. Write the fraction that results, uncancelled.",
            "Expand the fraction by two.",
            "Which equal fraction has a top and a bottom that are both twice as large?",
            "An equivalent fraction, with both its numbers doubled",
            "Double what is on each side of the slash.",
            "3/7 -> 6/14",
            'Return f"{2 * numerator}/{2 * denominator}".',
            "Cut every slice of the pizza in two, and say the same share in the new slices.",
        ),
        asked(
            "doubled",
            lambda fraction: 2 * value(fraction),
            "Take the fraction two times. Answer in lowest terms, with a whole number if the result is one.",
            "Double the value of the fraction and simplify.",
            "What is twice this fraction, reduced?",
            "Two times the fraction, in lowest terms",
            "Add the fraction to itself and cancel what can be cancelled.",
            "3/8 -> 3/4",
            "Return 2 * Fraction(numerator, denominator).",
            "One cake needs this much of a cup of sugar. How much do two cakes need, simplified?",
        ),
        asked(
            "halved",
            lambda fraction: value(fraction) / 2,
            "Divide the fraction by two. Answer with a fraction in lowest terms.",
            "Halve the value of the fraction and simplify.",
            "What is half of this fraction, reduced?",
            "One half of the fraction, in lowest terms",
            "Share the fraction between two and cancel what can be cancelled.",
            "4/7 -> 2/7",
            "Return Fraction(numerator, denominator) / 2.",
            "This much of a pie is left, and two people share it. How much does each get, simplified?",
        ),
        asked(
            "squared",
            lambda fraction: value(fraction) ** 2,
            "Multiply the fraction by itself. Answer in lowest terms.",
            "Square the fraction and simplify.",
            "What is the fraction to the power of two, reduced?",
            "The square of the fraction, in lowest terms",
            "Square the top, square the bottom and cancel.",
            "4/6 -> 4/9",
            "Return Fraction(numerator, denominator) ** 2.",
            "A square tile has sides of this length. Give its area as a simplified fraction.",
        ),
        asked(
            "plus_one",
            lambda fraction: value(fraction) + 1,
            "Add one whole to the fraction. Answer with a single fraction in lowest terms, or with a whole number.",
            "Increase the fraction by 1 and simplify.",
            "What is one more than this fraction, as an improper fraction?",
            "The fraction plus one, in lowest terms and without a separate whole part",
            "Add the denominator to the numerator and cancel what can be cancelled.",
            "2/5 -> 7/5",
            "Return Fraction(numerator, denominator) + 1.",
            "You have one full bottle and this much of another. How many bottles is that, as one fraction?",
        ),
        asked(
            "complement",
            lambda fraction: 1 - value(fraction),
            "Subtract the fraction from one. Answer in lowest terms, with a minus sign if the fraction is above one.",
            "Give what is missing to a whole, and a negative fraction if there is too much.",
            "How much is one minus this fraction?",
            "The rest that makes the fraction up to 1, below zero for fractions above one",
            "Take the fraction away from 1 and cancel what can be cancelled.",
            "3/10 -> 7/10",
            "Return 1 - Fraction(numerator, denominator).",
            "This much of the tank is full. What part is still empty? Write it with a minus if the tank overflows.",
        ),
        asked(
            "mixed",
            mixed,
            "Write the fraction as a mixed number in lowest terms. A fraction below one has no whole part.",
            "Split the fraction into a whole number and a proper fraction, simplified.",
            "How many wholes are there and what fraction is left over, cancelled?",
            "The mixed number, such as 2 1/3, or just the one part if there is no other",
            "Pull out the wholes, put a space and then what remains in lowest terms.",
            "10/4 -> 2 1/2",
            "Print the whole part of numerator / denominator unless it is 0, then the reduced rest unless it is 0.",
            "Seven quarters of a cup would be 1 3/4 in a cookery book. Write this amount as the book would.",
        ),
        asked(
            "over_half",
            lambda fraction: value(fraction) > Fraction(1, 2),
            "Compare the fraction with one half. Answer yes if it is larger, and no if it is equal or smaller.",
            "Say whether the fraction is more than a half.",
            "Is it greater than 1/2?",
            "Yes or no: the numerator is more than half of the denominator",
            "Decide whether twice the top exceeds the bottom.",
            "4/9 -> no",
            "Return yes if 2 * numerator > denominator, else no.",
            "This part of the members voted for it. Was that a majority?",
        ),
        asked(
            "below_one",
            lambda fraction: fraction[0] < fraction[1],
            "Compare the fraction with one. Answer yes if it is smaller, and no if it is equal or larger.",
            "Say whether it is a proper fraction.",
            "Is it less than a whole?",
            "Yes or no: the numerator is smaller than the denominator",
            "Decide whether the top is less than the bottom.",
            "9/8 -> no",
            "Return yes if numerator < denominator, else no.",
            "Somebody wants this much of a single cake. Will some cake remain?",
        ),
        asked(
            "is_lowest",
            lambda fraction: gcd(*fraction) == 1,
            "Try to cancel the fraction. Answer yes if it is in lowest terms already, and no if it can be reduced.",
            "Say whether the fraction is fully simplified.",
            "Are numerator and denominator without a common divisor above one?",
            "Yes or no: nothing can be cancelled",
            "Decide whether reducing the fraction would leave it as it is.",
            "14/21 -> no",
            "Return yes if gcd(numerator, denominator) == 1, else no.",
            "A teacher takes marks off for answers that could be written with smaller numbers. Is this one safe?",
        ),
        asked(
            "words",
            lambda fraction: f"{in_words(fraction[0])} over {in_words(fraction[1])}",
            'Spell out the upper number, then the word over, then the lower number. Leave out "and" within a number.',
            "Write the fraction in words, with over for the slash.",
            "How is the fraction read aloud as one number over another?",
            "The fraction without any digits, as something over something",
            "Replace both numbers by their English names and the slash by over.",
            "5/12 -> five over twelve",
            'Return f"{words(numerator)} over {words(denominator)}".',
            "Dictate the fraction on the telephone, saying over where the line is.",
        ),
        asked(
            "latex",
            lambda fraction: rf"\frac{{{fraction[0]}}}{{{fraction[1]}}}",
            r"Write the fraction for LaTeX. Use the command \frac and do not cancel anything.",
            "Convert the fraction to LaTeX.",
            "How is this fraction typeset with a backslash and the word frac?",
            "LaTeX source of the fraction, with numerator and denominator in braces",
            r"Put each of the two numbers in braces after \frac.",
            r"2/9 -> \frac{2}{9}",
            r'Return rf"\frac{{{numerator}}}{{{denominator}}}".',
            "Write what you would type in a scientific paper to see the fraction with a horizontal bar.",
        ),
    ),
)
