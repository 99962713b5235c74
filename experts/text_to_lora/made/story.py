"""Short arithmetic stories, such as "Anna has 12 eggs. Ben gives Anna 3 more. How many eggs does Anna have now?"."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from experts.domains.word_problems import PEOPLE, THINGS
from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.number import in_words

# For each operation: what is told about x and y, what is asked, and the sentence in which z answers it.
PLOTS = {
    "+": """
    {a} has {x} {things}. {b} gives {a} {y} more. | How many {things} does {a} have now? | {a} has {z} {things} now.
    {a} finds {x} {things}, and {b} finds {y}. | How many {things} do they find? | They find {z} {things}.
    {a} bought {x} {things} and later {y} more. | How many {things} did {a} buy? | {a} bought {z} {things}.
    {a} has {x} {things}. {b} has {y} more than {a}. | How many {things} does {b} have? | {b} has {z} {things}.
    There are {x} {things} on a table and {y} under it. | How many {things} are there? | There are {z} {things}.
    """,
    "-": """
    {a} had {x} {things} and lost {y}. | How many {things} does {a} still have? | {a} still has {z} {things}.
    {a} took {y} of {x} {things} from a box. | How many {things} are left in it? | There are {z} {things} left in it.
    {a} needs {x} {things} and has {y}. | How many {things} are missing? | {z} {things} are missing.
    {a} has {x} {things}. {b} has {y} fewer than {a}. | How many {things} does {b} have? | {b} has {z} {things}.
    A shop had {x} {things} and sold {y}. | How many {things} does it have now? | It has {z} {things} now.
    """,
    "x": """
    {a} buys {y} bags of {x} {things} each. | How many {things} does {a} buy? | {a} buys {z} {things}.
    {a} lays out {y} rows of {x} {things}. | How many {things} does {a} lay out? | {a} lays out {z} {things}.
    {a} found {x} {things} a day for {y} days. | How many {things} did {a} find? | {a} found {z} {things}.
    {a} has {x} {things}. {b} has {y} times as many. | How many {things} does {b} have? | {b} has {z} {things}.
    There are {y} boxes with {x} {things} in each. | How many {things} are in them? | There are {z} {things} in them.
    """,
    "/": """
    {a} gives {y} friends {x} {things} in equal shares. | How many {things} does each get? | Each gets {z} {things}.
    {a} lays out {x} {things} in {y} equal rows. | How many {things} are in a row? | There are {z} {things} in a row.
    {a} found {x} {things} in {y} days. | How many {things} a day is that? | That is {z} {things} a day.
    {a} has {x} {things}, {y} times as many as {b}. | How many {things} does {b} have? | {b} has {z} {things}.
    {x} {things} are in {y} boxes, as many in each. | How many {things} are in a box? | There are {z} {things} in a box.
    """,
}

OPERATIONS = {"+": "add", "-": "subtract", "x": "multiply", "/": "divide"}


@dataclass(frozen=True)
class Story:
    told: str
    question: str
    sentence: str
    """Answers the question."""
    operation: str
    answer: int
    things: str

    @property
    def numbers(self) -> list[int]:
        """The two numbers that are told, in their order."""
        return [int(number) for number in re.findall(r"\d+", self.told)]

    @property
    def people(self) -> list[str]:
        """The one or two people, or nobody, in the order in which they are first named."""
        return list(dict.fromkeys(re.findall("|".join(PEOPLE.split()), self.told)))

    @property
    def calculation(self) -> str:
        """The larger number comes first where the order matters; otherwise, the one that is told first."""
        first, second = self.numbers if self.operation in "+x" else sorted(self.numbers, reverse=True)
        return f"{first} {self.operation} {second}"


def draw(rng: random.Random) -> Story:
    operation = rng.choice(list(PLOTS))
    plot = rng.choice(PLOTS[operation].strip().splitlines())
    if operation in "+-":
        y, part = rng.randint(2, 60), rng.randint(2, 60)
        whole = y + part
    else:
        y, part = rng.randint(2, 9), rng.randint(2, 15)
        whole = y * part
    x, z = (part, whole) if operation in "+x" else (whole, part)
    a, b = rng.sample(PEOPLE.split(), 2)
    things = rng.choice(THINGS.split())
    told, question, sentence = plot.strip().format(a=a, b=b, x=x, y=y, z=z, things=things).split(" | ")
    return Story(told, question, sentence, operation, z, things)


def spelt(number: int) -> str:
    """A number below 1000 in words, with "and" after the hundreds.

    >>> spelt(42), spelt(130)
    ('forty-two', 'one hundred and thirty')
    """
    return in_words(number).replace("hundred ", "hundred and ")


STORY = Family(
    "story",
    draw,
    lambda story: f"{story.told} {story.question}",
    (
        asked(
            "answer",
            lambda story: story.answer,
            "You are given a short story with a question. Answer the question with a number.",
            "Solve the word problem and give the number alone.",
            "How many are there, as the story's question asks?",
            "The numerical solution of a one-step word problem",
            "Read the little tale, do the sum it calls for, and write the result in digits.",
            "Anna has 3 eggs. Ben gives Anna 2 more. How many eggs does Anna have now? -> 5",
            "A child brings maths homework in the form of a story. Say the result.",
            "Work out what the question at the end wants to know, without units.",
        ),
        asked(
            "working",
            lambda story: f"{story.calculation} = {story.answer}",
            "You are given a word problem. Write the calculation that solves it as one line, such as 6 x 7 = 42.",
            "Show the working of the story as an equation with its result.",
            "Which calculation answers the question, and what does it come to?",
            "The complete sum behind a story, from the first operand to the result",
            "Put the numbers, the sign +, -, x or / and the result on one line.",
            "Leo had 9 coins and lost 4. How many coins does Leo still have? -> 9 - 4 = 5",
            "Write on the blackboard what a teacher would want to see worked out.",
            "Turn the text into arithmetic, with the equals sign and what stands after it.",
        ),
        asked(
            "expression",
            lambda story: story.calculation,
            "You are given a word problem. Write the calculation that it calls for, such as 6 x 7, without its result.",
            "Translate the story into an arithmetic expression and leave it unsolved.",
            "What would you type into a calculator to solve the story?",
            "Two operands and a sign between them, taken from a story",
            "Set up the calculation, but do not carry it out.",
            "Leo had 9 coins and lost 4. How many coins does Leo still have? -> 9 - 4",
            "Give the formula that somebody else can evaluate to answer the question.",
            "Write what goes to the left of the equals sign when this problem is solved.",
        ),
        asked(
            "who",
            lambda story: story.people[0] if story.people else "nobody",
            "You are given a short story. Answer with the person who is named first, or with nobody.",
            "Say who the story is about.",
            "Who is the hero of the little story, if anybody is named?",
            "The first name that occurs in a word problem",
            "Find the earliest person in the text and ignore what is counted.",
            "Mia finds 4 shells, and Paul finds 5. How many shells do they find? -> Mia",
            "An actor wants to play the main part. Tell them the character's name.",
            "Return the first proper name, or nobody if boxes and shops are all there is.",
        ),
        asked(
            "people",
            lambda story: len(story.people),
            "You are given a short story. Answer with how many different people are named in it: 0, 1 or 2.",
            "Count the characters of the story by their names.",
            "Does nobody, one person or a pair of people appear? Give the number.",
            "The size of a word problem's cast",
            "Tally the names, each of them once, however often it is repeated.",
            "Mia finds 4 shells, and Paul finds 5. How many shells do they find? -> 2",
            "The story is to be performed. How many actors does it take?",
            "len(set(names in the text))",
        ),
        asked(
            "things",
            lambda story: story.things,
            "You are given a short story. Answer with the kind of thing that is counted in it.",
            "Name the objects that the story is about.",
            "What is it that people find, buy, lose or give away?",
            "The plural noun for what a word problem counts",
            "Leave people and numbers aside and say which objects they deal with.",
            "Kate needs 12 buttons and has 7. How many buttons are missing? -> buttons",
            "An illustrator asks what to draw lots of. Tell them in one word.",
            "Apples, coins, stamps or something else? Pick the word out of the text.",
        ),
        asked(
            "first_number",
            lambda story: story.numbers[0],
            "You are given a short story with two numbers. Answer with the number that is mentioned first.",
            "Copy the earlier of the two figures in the story.",
            "Which number does one come across first while reading?",
            "The leading number of a word problem",
            "Stop reading at the first digits and write them down.",
            "Noah buys 4 bags of 10 stones each. How many stones does Noah buy? -> 4",
            r'Return re.search(r"\d+", story)[0].',
            "Repeat the opening quantity, whatever the question may be.",
        ),
        asked(
            "largest",
            lambda story: max(story.numbers),
            "You are given a short story with two numbers. Answer with the larger of the two.",
            "Find the biggest number that the story mentions.",
            "Which figure in the text is the highest?",
            "The greater quantity in a word problem, as it is told",
            "Compare the figures that occur in the story and keep the bigger one.",
            "Noah buys 4 bags of 12 stones each. How many stones does Noah buy? -> 12",
            "Do not solve the story; say the maximum of what is written there.",
            "Whichever of the story's numbers exceeds the other",
        ),
        asked(
            "operation",
            lambda story: OPERATIONS[story.operation],
            "You are given a word problem. Answer with what has to be done: add, subtract, multiply or divide.",
            "Name the kind of arithmetic that the story needs.",
            "Which of the four operations solves it?",
            "The operation behind a word problem, as a verb",
            "Decide whether the numbers are to be put together, taken away, taken times each other or shared out.",
            "Emma lays out 18 cards in 3 equal rows. How many cards are in a row? -> divide",
            "Which key of the calculator, plus, minus, times or by, would you press here? Answer with its verb.",
            "Classify the problem by the calculation it asks for.",
        ),
        asked(
            "in_words",
            lambda story: spelt(story.answer),
            "You are given a word problem. Answer it with a number written in words, such as forty-two.",
            "Solve the story and spell the result out.",
            "How many are there? Use letters, not digits.",
            "The solution of a story as a number word",
            "Do the calculation and write its outcome as one would say it.",
            "Anna has 30 eggs. Ben gives Anna 5 more. How many eggs does Anna have now? -> thirty-five",
            "Fill in a cheque for the number that the question asks for, in words.",
            "Give the answer to the story as English numerals.",
        ),
        asked(
            "above_50",
            lambda story: story.answer > 50,
            "You are given a word problem. Answer yes if its solution is above 50, and no if it is not.",
            "Decide whether the result of the story exceeds fifty.",
            "Is the answer to the question more than 50?",
            "Yes or no, by whether the solution passes fifty",
            "Solve the story in your head and compare the outcome with 50.",
            "Ida bought 30 coins and later 31 more. How many coins did Ida buy? -> yes",
            "There is room for fifty. Say yes if the story's answer would not fit.",
            'Return "yes" if solve(story) > 50 else "no".',
        ),
        asked(
            "question",
            lambda story: story.question,
            "You are given a short story with a question. Repeat the question alone, word for word.",
            "Copy the sentence that ends with a question mark.",
            "What is being asked? Quote it.",
            "The question of a word problem, without what is told before",
            "Drop the facts and keep what the reader is to find out.",
            "Olga needs 8 books and has 3. How many books are missing? -> How many books are missing?",
            "Return the last sentence as it stands.",
            "The reader has forgotten what they were to work out. Read them that sentence again.",
        ),
        asked(
            "facts",
            lambda story: story.told,
            "You are given a short story with a question. Repeat the story without the question.",
            "Copy everything that comes before the question.",
            "What is known before anything is asked? Quote it.",
            "The facts of a word problem, and nothing else",
            "Delete the sentence with the question mark and return the rest.",
            "Olga needs 8 books and has 3. How many books are missing? -> Olga needs 8 books and has 3.",
            "Keep the statements and drop what the reader is to find out.",
            "Cut the task off the end and leave the tale.",
        ),
        asked(
            "with_things",
            lambda story: f"{story.answer} {story.things}",
            "You are given a word problem. Answer with the number and what is counted, such as 42 eggs.",
            "Solve the story and put the noun after the result.",
            "How many of what are there? Use two words.",
            "The solution together with its unit, where things are the unit",
            "Give the result in figures, followed by the objects it counts.",
            "Clara had 20 stamps and lost 6. How many stamps does Clara still have? -> 14 stamps",
            "Label a box with how many it holds and of which kind, going by the question.",
            "Do the sum and say what it is a number of.",
        ),
        asked(
            "sentence",
            lambda story: story.sentence,
            "You are given a word problem. Answer its question in a full sentence that takes up the question's words.",
            "Solve the story and reply with a whole sentence.",
            "What would a pupil write under the calculation as the answer sentence?",
            "A complete sentence that states the solution",
            "Turn the question into a statement with the right number in it.",
            "Clara had 20 stamps and lost 6. How many stamps does Clara still have? -> Clara still has 14 stamps.",
            "Reply politely and at full length, with subject, verb, result and full stop.",
            "Do not just give the number; say who has it or where it is.",
        ),
    ),
)
