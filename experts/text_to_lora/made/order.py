"""Three or four people from the tallest to the shortest, such as "Anna > Ben > Carla"."""

from __future__ import annotations

import random
from itertools import pairwise

from experts.text_to_lora.made.family import Family, asked

NAMES = ("Anna", "Ben", "Carla", "Dan", "Eva", "Fred", "Gina", "Hugo", "Ida", "Jack", "Kate", "Leo", "Mia", "Viktor")


def draw(rng: random.Random) -> list[str]:
    return rng.sample(NAMES, rng.randint(3, 4))


def show(people: list[str]) -> str:
    return " > ".join(people)


def listed(parts: list[str], last: str) -> str:
    """The parts with commas between, and `last` before the last one.

    >>> listed(["Anna", "Ben", "Carla"], " and ")
    'Anna, Ben and Carla'
    """
    return ", ".join(parts[:-1]) + last + parts[-1]


def sentence(people: list[str]) -> str:
    first, *others = pairwise(people)
    clauses = [f"{first[0]} is taller than {first[1]}", *(f"{taller} than {shorter}" for taller, shorter in others)]
    return listed(clauses, ", and ") + "."


ORDER = Family(
    "order",
    draw,
    show,
    (
        asked(
            "tallest",
            lambda people: people[0],
            "You are given people from the tallest to the shortest. Answer with the tallest.",
            "Name the person who is taller than all the others.",
            "Who is the tallest of them?",
            "The greatest in height",
            "Copy the first name of the chain.",
            "Ida > Tom > Lea -> Ida",
            "Return people[0].",
            "Something lies on a high shelf. Who can reach it most easily?",
        ),
        asked(
            "shortest",
            lambda people: people[-1],
            "You are given people from the tallest to the shortest. Answer with the shortest.",
            "Name the person who is shorter than all the others.",
            "Who is the shortest of them?",
            "The least in height",
            "Copy the last name of the chain.",
            "Max > Ida > Tom > Lea -> Lea",
            "Return people[-1].",
            "Who should stand in the front row of a photograph, so as not to be hidden by anyone?",
        ),
        asked(
            "second",
            lambda people: people[1],
            "You are given people from the tallest to the shortest. Answer with the second tallest.",
            "Name the person just below the tallest.",
            "Who is shorter than one person only?",
            "The runner-up in height",
            "Copy the name after the first > sign.",
            "Lea > Ida > Tom > Max -> Ida",
            "Return people[1].",
            "The tallest of them goes home. Who is the tallest of those who stay?",
        ),
        asked(
            "third",
            lambda people: people[2],
            "You are given people from the tallest to the shortest. Answer with the third tallest.",
            "Name the person in the third place, counted from the tallest.",
            "Who is shorter than exactly two others?",
            "Number three in height",
            "Copy the name after the second > sign.",
            "Lea > Max > Ida > Tom -> Ida",
            "Return people[2].",
            "For height there are gold, silver and bronze medals. Who gets the bronze one?",
        ),
        asked(
            "how_many",
            len,
            "You are given people in order of height. Answer with the number of people.",
            "Count all the names in the chain.",
            "How many people are compared?",
            "The number of persons, the tallest and the shortest included",
            "Count the > signs and add one.",
            "Lea > Max > Ida > Tom -> 4",
            "Return len(people).",
            "All of them sit down at a table. How many chairs do they need?",
        ),
        asked(
            "reversed",
            lambda people: " < ".join(reversed(people)),
            "You are given people from the tallest to the shortest. Write them from the shortest up, with < between.",
            "Turn the chain round and write < in place of >.",
            "How does the order read from the smallest to the greatest, with < signs?",
            "The chain in rising order of height, joined by <",
            "Begin with the last name, go back to the first, and put < between names.",
            "Ida > Tom > Lea -> Lea < Tom < Ida",
            "Return ' < '.join(reversed(people)).",
            "They queue up anew, the smallest in front now. Write the queue with < between neighbours.",
        ),
        asked(
            "ends_by_alphabet",
            lambda people: people[0] < people[-1],
            "People are given by height. Answer yes if the tallest comes before the shortest in the alphabet, else no.",
            "Say whether the first name precedes the last one alphabetically: yes or no.",
            "Does the tallest person's name come earlier in the alphabet than the shortest one's?",
            "First name before last name by alphabet or not, as yes or no",
            "Compare the initials of the tallest and the shortest, and reply yes if they rise, no if they fall.",
            "Ida > Tom > Lea -> yes",
            "Return people[0] < people[-1] as yes or no.",
            "In a class register by first names, is the tallest of these listed above the shortest?",
        ),
        asked(
            "numbered",
            lambda people: " ".join(f"{place}. {name}" for place, name in enumerate(people, 1)),
            "You are given people from the tallest to the shortest. Write them on one line as a numbered list.",
            "Put 1., 2., 3. and so on before the names, without > signs.",
            "Who has which place by height, numbered with full stops?",
            "A ranking on one line, each place with its number and a full stop",
            "Replace the > signs by the numbers of the places, and begin with 1.",
            "Ida > Tom > Lea -> 1. Ida 2. Tom 3. Lea",
            "Return ' '.join(f'{place}. {name}' for place, name in enumerate(people, 1)).",
            "Read the results of a contest for height, with the place before each name.",
        ),
        asked(
            "sentence",
            sentence,
            "You are given people by height. Write a sentence: 'A is taller than B, B than C, and C than D.'",
            "Say in a sentence who is taller than whom, down the chain.",
            "Who is taller than whom, in one sentence with 'is taller than' first and then only 'than'?",
            "The order in words: '… is taller than …', further pairs as '… than …', 'and' before the last",
            "Replace the signs by words and make a full sentence with commas, 'and' and a full stop.",
            "Ida > Tom > Lea -> Ida is taller than Tom, and Tom than Lea.",
            "Write 'X is taller than Y', then ', Y than Z' for each further pair, the last one after ', and'.",
            "Explain this chain to someone who doesn't know what > means, in one sentence.",
        ),
        asked(
            "alphabetical",
            lambda people: sorted(people),
            "You are given people in order of height. Write their names in alphabetical order, with spaces between.",
            "Sort the names from A to Z and drop the signs.",
            "In which order does a telephone list of first names have them?",
            "All the names by alphabet, whatever their heights",
            "Forget who is taller and order the people by their initials, each in full.",
            "Tom > Ida > Lea -> Ida Lea Tom",
            "Return sorted(people).",
            "Coat hooks are given out from A to Z. Write the names from the first hook to the last.",
        ),
        asked(
            "initials",
            lambda people: [name[0] for name in people],
            "You are given people from the tallest to the shortest. Write their initials, with spaces between.",
            "Shorten every name to its first letter and drop the signs.",
            "With which letters do the names begin, in the order given?",
            "First letters only, from the tallest to the shortest",
            "Keep the capitals and nothing else.",
            "Tom > Ida > Lea -> T I L",
            "Return [name[0] for name in people].",
            "They carve just one letter each into a tree, the tallest first. What stands there?",
        ),
        asked(
            "with_and",
            lambda people: listed(people, " and "),
            "You are given people in order of height. List them as they come, with commas and a last 'and'.",
            "Write the names as in running text: commas between, 'and' at the end.",
            "Who are they, as one would list them in a sentence?",
            "The names as a phrase with 'and', in the order given",
            "Replace the last > by 'and' and the others by commas.",
            "Tom > Ida > Lea -> Tom, Ida and Lea",
            "Return ', '.join(people[:-1]) + ' and ' + people[-1].",
            "Begin a letter to all of them: only the names that follow 'Dear', the tallest first.",
        ),
        asked(
            "without_tallest",
            lambda people: show(people[1:]),
            "You are given people from the tallest to the shortest. Write the chain again without the tallest.",
            "Remove the first name and its sign, and keep the rest with >.",
            "How does the chain read once the tallest has left?",
            "The chain from the second person on, with > signs",
            "Copy everything after the first > sign.",
            "Max > Tom > Ida > Lea -> Tom > Ida > Lea",
            "Return ' > '.join(people[1:]).",
            "The tallest is too big for this game. Write the order by height of those who may play, with >.",
        ),
        asked(
            "ends_swapped",
            lambda people: show([people[-1], *people[1:-1], people[0]]),
            "You are given a chain of people. Let the first and the last change places, and write it with > again.",
            "Swap the two ends of the chain, and leave all between them alone.",
            "How does the chain read when its first and last names trade places, with > kept?",
            "The chain with its ends exchanged, the signs as they are",
            "Move the last name to the front and the first to the end; the middle does not move.",
            "Max > Tom > Ida > Lea -> Lea > Tom > Ida > Max",
            "Swap people[0] and people[-1], then join with ' > '.",
            "By mistake tallest and shortest were mixed up in the record. Correct the chain, with >.",
        ),
        asked(
            "between",
            lambda people: people[1:-1],
            "You are given people from the tallest to the shortest. Name those who are neither, with spaces between.",
            "Drop the first and the last name, and keep the others without signs.",
            "Who is neither the tallest nor the shortest?",
            "Everybody between the two extremes, in the order given",
            "Name the people who have somebody taller and somebody shorter beside them.",
            "Max > Tom > Ida > Lea -> Tom Ida",
            "Return people[1:-1].",
            "The tallest and the shortest do not fit the costumes, but the others do. Who are they?",
        ),
        asked(
            "extremes",
            lambda people: f"{people[0]} and {people[-1]}",
            "You are given people by height. Name the tallest and the shortest, in this order, with 'and' between.",
            "Write the first name, 'and', and the last name.",
            "Which two people differ most in height, the taller one first?",
            "The two ends of the chain, joined by 'and'",
            "Leave out the middle, and join what remains with 'and'.",
            "Max > Tom > Ida > Lea -> Max and Lea",
            "Return f'{people[0]} and {people[-1]}'.",
            "Which pair looks oddest side by side, as one towers over the other? Put 'and' between the two.",
        ),
        asked(
            "pairs",
            lambda people: ", ".join(f"{taller} > {shorter}" for taller, shorter in pairwise(people)),
            "You are given a chain of people by height. Split it into pairs of neighbours with >, and commas between.",
            "Break the chain up into single comparisons of two.",
            "Which comparisons of two neighbours make up the chain, as in 'X > Y, Y > Z'?",
            "Every person with the next one, as pairs with > and commas",
            "Write each > sign with the name on either side of it, one pair after another.",
            "Max > Tom > Ida -> Max > Tom, Tom > Ida",
            "Return ', '.join(f'{a} > {b}' for a, b in pairwise(people)).",
            "Somebody measured them back to back, always two who are next to each other. Note each result with >.",
        ),
        asked(
            "newcomer",
            lambda people: show(["Zoe", *people]),
            "You are given people by height. Zoe is taller than all of them: write the chain with her in it.",
            "Put Zoe at the head of the chain, with > after her name.",
            "How does the chain read after Zoe, the tallest of all, has joined?",
            "The chain with Zoe in the first place",
            "Write 'Zoe > ' and then the whole chain.",
            "Max > Tom > Ida -> Zoe > Max > Tom > Ida",
            "Return ' > '.join(['Zoe', *people]).",
            "Zoe comes in and looks down on everyone. Write the order by height now, with >.",
        ),
        asked(
            "shorter_count",
            lambda people: len(people) - 1,
            "You are given people by height. Answer with the number of those who are shorter than the tallest.",
            "Count the people below the first one, who is not counted.",
            "How many people does the tallest one look down on?",
            "The number of names after the first",
            "Count the > signs and add nothing.",
            "Olga > Max > Ida > Tom -> 3",
            "Return len(people) - 1.",
            "Each of the others looks up to the tallest. How many are those others?",
        ),
        asked(
            "name_length",
            lambda people: len(people[0]),
            "You are given people from the tallest to the shortest. Count the letters in the tallest's name.",
            "Count the letters of the first name in the chain.",
            "How many letters has the name of the tallest?",
            "The length of the name at the head of the chain",
            "Spell the tallest person's name and count.",
            "Anton > Ida > Tom -> 5",
            "Return len(people[0]).",
            "The tallest embroiders a cap with one letter of the name after another. How many letters are sewn?",
        ),
    ),
)
