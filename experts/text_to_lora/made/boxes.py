"""Two boxes of coloured balls, such as "box A: 3 red, 2 blue; box B: 1 red, 4 green"."""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked

COLOURS = ("red", "blue", "green", "yellow", "white", "black")


class Boxes(NamedTuple):
    """How many balls of each colour are in each box."""

    a: Counter[str]
    b: Counter[str]

    @property
    def together(self) -> Counter[str]:
        """Colours in the order in which they are first named."""
        return self.a + self.b

    @property
    def lead(self) -> int:
        """How many more balls are in box A than in box B."""
        return self.a.total() - self.b.total()


def draw(rng: random.Random) -> Boxes:
    """One box has more balls than the other, and one colour more than every other."""
    while True:
        boxes = Boxes(a_box(rng), a_box(rng))
        heaps = sorted(boxes.together.values())
        if boxes.lead != 0 and heaps[-1] > heaps[-2]:
            return boxes


def a_box(rng: random.Random) -> Counter[str]:
    return Counter({colour: rng.randint(1, 9) for colour in rng.sample(COLOURS, rng.randint(2, 3))})


def contents(box: Counter[str]) -> str:
    return ", ".join(f"{count} {colour}" for colour, count in box.items())


def show(boxes: Boxes) -> str:
    return f"box A: {contents(boxes.a)}; box B: {contents(boxes.b)}"


BOXES = Family(
    "boxes",
    draw,
    show,
    (
        asked(
            "in_a",
            lambda boxes: boxes.a.total(),
            "Two boxes hold coloured balls. Answer with the number of balls in box A.",
            "Count the balls in the first box.",
            "How many balls are in box A?",
            "The total of box A, all colours together",
            "Add up the numbers before the semicolon.",
            "box A: 4 blue, 3 red; box B: 1 green, 1 red -> 7",
            "Return sum(boxes['A'].values()).",
            "Box B is taken away. How many balls are left on the table?",
        ),
        asked(
            "in_b",
            lambda boxes: boxes.b.total(),
            "Two boxes hold coloured balls. Answer with the number of balls in box B.",
            "Count the balls in the second box.",
            "How many balls are in box B?",
            "The total of box B, all colours together",
            "Add up the numbers after the semicolon.",
            "box A: 4 blue, 3 red; box B: 1 green, 5 red -> 6",
            "Return sum(boxes['B'].values()).",
            "Box A is taken away. How many balls are there still?",
        ),
        asked(
            "in_all",
            lambda boxes: boxes.together.total(),
            "Two boxes hold coloured balls. Answer with the number of balls in both together.",
            "Count all the balls, whatever their colour or box.",
            "How many balls are there altogether?",
            "The grand total over both boxes",
            "Add up every number that you see.",
            "box A: 4 blue, 3 red; box B: 1 green, 5 red -> 13",
            "Return sum(boxes['A'].values()) + sum(boxes['B'].values()).",
            "Both boxes fall over and everything rolls on the floor. How many balls must be picked up?",
        ),
        asked(
            "red",
            lambda boxes: boxes.together["red"],
            "Two boxes hold coloured balls. Answer with the number of red balls in both together, 0 if there are none.",
            "Count the red balls.",
            "How many balls are red?",
            "The number of reds over both boxes",
            "Add up the numbers that stand before 'red'; without any, write 0.",
            "box A: 2 red, 5 blue; box B: 4 red, 3 white -> 6",
            "Return boxes['A'].get('red', 0) + boxes['B'].get('red', 0).",
            "A bull wants only the balls of its favourite colour, red. How many does it get?",
        ),
        asked(
            "fuller",
            lambda boxes: "A" if boxes.lead > 0 else "B",
            "Two boxes hold coloured balls. Answer A or B: which has more balls?",
            "Name the fuller box by its letter.",
            "Which box, A or B, holds the larger number of balls?",
            "The letter of the box with more in it",
            "Add up each box and give the letter of the greater sum.",
            "box A: 4 blue, 3 red; box B: 1 green, 5 red -> A",
            "Return max('AB', key=lambda letter: sum(boxes[letter].values())).",
            "All balls weigh the same. Which box is the heavier to carry, A or B?",
        ),
        asked(
            "emptier",
            lambda boxes: "B" if boxes.lead > 0 else "A",
            "Two boxes hold coloured balls. Answer A or B: which has fewer balls?",
            "Name the box with the smaller number of balls by its letter.",
            "Which box, A or B, is the emptier one?",
            "The letter of the box with less in it",
            "Add up each box and give the letter of the smaller sum.",
            "box A: 4 blue, 3 red; box B: 1 green, 5 red -> B",
            "Return min('AB', key=lambda letter: sum(boxes[letter].values())).",
            "All balls weigh the same. Which box would rise on a seesaw, A or B?",
        ),
        asked(
            "colours",
            lambda boxes: list(boxes.together),
            "Two boxes hold coloured balls. Write each colour that they have, without repeats, as first mentioned.",
            "List the different colours of both boxes, without repeats.",
            "Which colours do the balls have, each named once?",
            "All colours in either box, as they first appear, with spaces between",
            "Read from left to right and write down each new colour.",
            "box A: 2 red, 5 blue; box B: 3 white, 4 red -> red blue white",
            "Return list(boxes['A'] | boxes['B']).",
            "Which pots of paint were needed to colour the balls of both boxes?",
        ),
        asked(
            "shared",
            lambda boxes: [colour for colour in boxes.a if colour in boxes.b],
            "Two boxes hold coloured balls. Write the colours that are in both boxes, in box A's order, or none.",
            "List the colours that the boxes have in common, or none.",
            "Which colours occur in box A as well as in box B, if any (none)?",
            "The colours named twice, in the order of the first box, or none",
            "Go through box A and keep the colours that box B has too; if there are none, say none.",
            "box A: 8 red, 2 blue; box B: 3 white, 4 blue -> blue",
            "Return [colour for colour in boxes['A'] if colour in boxes['B']].",
            "Take a ball from each box so that the two match. Which colours can it be, if any (none)?",
        ),
        asked(
            "commonest",
            lambda boxes: max(boxes.together, key=boxes.together.__getitem__),
            "Two boxes hold coloured balls. Name the colour with the most balls, both boxes together.",
            "Name the commonest colour over both boxes.",
            "Of which colour are there more balls than of any other?",
            "The most frequent colour when the boxes are poured together",
            "Add up each colour over both boxes and name the one with the greatest sum.",
            "box A: 2 red, 6 blue; box B: 2 white, 1 blue, 3 red -> blue",
            "Return (Counter(boxes['A']) + Counter(boxes['B'])).most_common(1)[0][0].",
            "You draw one ball blindly from the whole lot. Which colour should you bet on?",
        ),
        asked(
            "swapped",
            lambda boxes: show(Boxes(boxes.b, boxes.a)),
            "Two boxes hold coloured balls. Write them again with their contents exchanged.",
            "Swap what is in box A and what is in box B.",
            "How does the line read when the two boxes trade their contents?",
            "The same two boxes in the same form, each with the other's balls",
            "Leave the labels where they are and exchange what follows them.",
            "box A: 2 red, 5 blue; box B: 4 red, 1 white -> box A: 4 red, 1 white; box B: 2 red, 5 blue",
            "Swap boxes['A'] and boxes['B'], then write both.",
            "Someone put the lids with the letters on the wrong boxes. Write what is really in A and in B.",
        ),
        asked(
            "difference",
            lambda boxes: abs(boxes.lead),
            "Two boxes hold coloured balls. Answer with how many more balls the fuller box has than the other.",
            "Subtract the smaller box total from the larger.",
            "By how many balls do the two boxes differ?",
            "The difference between the totals of the boxes, without a sign",
            "Add up each box and say how far apart the two sums are.",
            "box A: 2 red, 5 blue; box B: 1 red, 2 white -> 4",
            "Return abs(sum(boxes['A'].values()) - sum(boxes['B'].values())).",
            "How many balls must be added to the emptier box to make the boxes equal?",
        ),
        asked(
            "together",
            lambda boxes: contents(boxes.together),
            "Two boxes hold coloured balls. Write what one box holds after both are poured into it, colour by colour.",
            "Merge the boxes: each colour once, with its count over both.",
            "How many of each colour are there in all, as in '5 red, 2 blue'?",
            "The contents of both boxes as one list, colours in the order of first mention",
            "Add the counts of a colour where it occurs twice, and list all colours.",
            "box A: 2 red, 5 blue; box B: 4 red, 1 white -> 6 red, 5 blue, 1 white",
            "Return Counter(boxes['A']) + Counter(boxes['B']), written like '3 red, 1 blue'.",
            "Both boxes are emptied into a sack. Write the sack's label, with numbers and colours.",
        ),
        asked(
            "only_a",
            lambda boxes: [colour for colour in boxes.a if colour not in boxes.b],
            "Two boxes hold coloured balls. Write the colours of box A that box B does not have, or none.",
            "List the colours found in box A alone, or none.",
            "Which of box A's colours are missing from box B, if any (none)?",
            "The colours special to the first box, as they come, or none",
            "Go through box A and drop each colour that is in box B too; if nothing is left, say none.",
            "box A: 2 red, 5 blue; box B: 4 blue, 3 white -> red",
            "Return [colour for colour in boxes['A'] if colour not in boxes['B']].",
            "Which colours could box B's owner get only by asking box A's owner, if any (none)?",
        ),
        asked(
            "colour_count",
            lambda boxes: len(boxes.together),
            "Two boxes hold coloured balls. Answer with the number of different colours in both together.",
            "Count the distinct colours; one that is in both boxes counts once.",
            "How many different colours are there?",
            "The number of colours, not of balls",
            "Say how many colours you can tell apart when all the balls lie together.",
            "box A: 2 red, 5 blue; box B: 4 red, 3 white -> 3",
            "Return len(boxes['A'].keys() | boxes['B'].keys()).",
            "All balls are sorted into bowls by colour. How many bowls does that take?",
        ),
        asked(
            "contents_b",
            lambda boxes: contents(boxes.b),
            "Two boxes hold coloured balls. Write only the contents of box B, as they stand.",
            "Copy what box B holds, without its label.",
            "What is in box B, in numbers and colours?",
            "The second box's list of counts and colours",
            "Drop everything up to the second colon and copy the rest.",
            "box A: 2 red, 5 blue; box B: 4 red, 3 white -> 4 red, 3 white",
            "Return text.split('box B: ')[1].",
            "Open the second box and say what you see, colour by colour.",
        ),
        asked(
            "largest_heap",
            lambda boxes: max(*boxes.a.values(), *boxes.b.values()),
            "Two boxes hold coloured balls. Answer with the largest single number in the line.",
            "Find the highest count of one colour within one box.",
            "What is the greatest number of equal balls in any one box?",
            "The biggest count that is written down, not added up",
            "Compare all the numbers and repeat the largest.",
            "box A: 2 red, 5 blue; box B: 4 red, 3 white -> 5",
            "Return max(*boxes['A'].values(), *boxes['B'].values()).",
            "In each box the balls lie in heaps by colour. How many balls are in the biggest heap?",
        ),
        asked(
            "blue_in_b",
            lambda boxes: boxes.b["blue"],
            "Two boxes hold coloured balls. Answer with the number of blue balls in box B, 0 if there are none.",
            "Count the blue balls of the second box.",
            "How many blue balls does box B have?",
            "The blues in box B only, or 0",
            "Ignore box A, and give the number before 'blue' in box B; without it, write 0.",
            "box A: 2 red, 5 blue; box B: 4 blue, 3 white -> 4",
            "Return boxes['B'].get('blue', 0).",
            "I may look into box B only and collect what is blue. How many balls do I collect?",
        ),
        asked(
            "even_total",
            lambda boxes: boxes.together.total() % 2 == 0,
            "Two boxes hold coloured balls. Answer yes if the number of all balls is even, and no otherwise.",
            "Say whether the total over both boxes is an even number: yes or no.",
            "Can all the balls be dealt to two children so that each gets equally many?",
            "An even number of balls in all or not, as yes or no",
            "Add up all the numbers and reply yes if two divides the sum, no if it does not.",
            "box A: 2 red, 5 blue; box B: 4 red, 3 white -> yes",
            "Return (sum(boxes['A'].values()) + sum(boxes['B'].values())) % 2 == 0 as yes or no.",
            "The balls are taken out in pairs, whatever their colour. Does it come out without one left over?",
        ),
        asked(
            "first_in_b",
            lambda boxes: next(iter(boxes.b)),
            "Two boxes hold coloured balls. Answer with the colour that is named first for box B.",
            "Name the colour at the head of box B's list.",
            "Which colour comes first in box B?",
            "The opening colour of the second box",
            "Go to the second colon and copy the first colour after it.",
            "box A: 2 red, 5 blue; box B: 4 white, 3 red -> white",
            "Return next(iter(boxes['B'])).",
            "Someone reads box B out to you. Which colour do you hear before any other?",
        ),
    ),
)
