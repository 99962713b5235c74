"""Two to four variables that are given numbers, such as "x = 4; y = 7; z = 1"."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from operator import itemgetter

from experts.text_to_lora.made.family import Family, asked

NAMES = (
    *("a", "b", "c", "i", "j", "k", "m", "n", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z"),
    *("age", "cost", "day", "hits", "left", "page", "rate", "row", "size", "step", "time", "year"),
)


def draw(rng: random.Random) -> dict[str, int]:
    """No two values are equal, so that one is the largest."""
    count = rng.randint(2, 4)
    return dict(zip(rng.sample(NAMES, count), rng.sample(range(100), count), strict=True))


def code(variables: Iterable[tuple[str, object]]) -> str:
    return "; ".join(f"{name} = {value}" for name, value in variables)


def comma(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))


def swapped(variables: dict[str, int]) -> str:
    first, *between, last = variables.values()
    return code(zip(variables, (last, *between, first), strict=True))


ASSIGNMENTS = Family(
    "assignments",
    draw,
    lambda variables: code(variables.items()),
    (
        asked(
            "first_value",
            lambda variables: next(iter(variables.values())),
            "You are given assignments to variables. Answer with the value of the first variable.",
            "Give the number that is assigned first.",
            "What value does the leftmost variable get?",
            "The value in the opening assignment",
            "Copy what stands between the first equals sign and the first semicolon.",
            "b = 12; k = 30; a = 5 -> 12",
            "Return list(variables.values())[0].",
            "Execute only the first statement and look at what was stored.",
        ),
        asked(
            "last_value",
            lambda variables: list(variables.values())[-1],
            "You are given assignments to variables. Answer with the value of the last variable.",
            "Give the number that is assigned last.",
            "What value does the rightmost variable get?",
            "The value in the closing assignment",
            "Copy the number at the very end of the code.",
            "b = 12; k = 30; a = 7 -> 7",
            "Return list(variables.values())[-1].",
            "Run the statements one by one. Which number was stored most recently?",
        ),
        asked(
            "sum",
            lambda variables: sum(variables.values()),
            "Several variables are given values. Answer with the sum of all the values.",
            "Add up the values of the variables.",
            "What do all the variables make together?",
            "The total of the assigned numbers",
            "Run the code and then evaluate the variables with plus signs between them.",
            "x = 8; n = 20; q = 3 -> 31",
            "Return sum(variables.values()).",
            "Every variable is the number of coins in a jar. How many coins are there in all?",
        ),
        asked(
            "largest",
            lambda variables: max(variables, key=variables.get),
            "Compare the values of the variables. Answer with the name of the variable whose value is largest.",
            "Name the variable that holds the biggest number.",
            "Which variable has the maximum?",
            "The name that belongs to the highest value",
            "Look for the greatest number and say what it is assigned to, not how great it is.",
            "x = 8; n = 20; q = 3 -> n",
            "Return max(variables, key=variables.get).",
            "The variables are players and the numbers their points. Who won?",
        ),
        asked(
            "smallest",
            lambda variables: min(variables, key=variables.get),
            "Compare the values of the variables. Answer with the name of the variable whose value is smallest.",
            "Name the variable that holds the lowest number.",
            "Which variable has the minimum?",
            "The name that belongs to the least value",
            "Look for the smallest number and say what it is assigned to, not how small it is.",
            "x = 8; n = 20; q = 3 -> q",
            "Return min(variables, key=variables.get).",
            "The variables are golfers and the fewest strokes win. Who won?",
        ),
        asked(
            "largest_value",
            lambda variables: max(variables.values()),
            "Some variables get values. Answer with the largest value, as a number and without the name.",
            "Give the biggest number that is assigned.",
            "How great is the greatest of the values?",
            "The maximum of the assigned numbers, not the variable that has it",
            "Forget the names and pick out the highest number.",
            "x = 8; n = 20; q = 3 -> 20",
            "Return max(variables.values()).",
            "Each variable is somebody's age. How old is the oldest?",
        ),
        asked(
            "how_many",
            len,
            "Look at the assignments. Answer with how many variables there are.",
            "Count the variables.",
            "How many assignments does the code make?",
            "The number of variables, as a digit",
            "Count the equals signs.",
            "row = 40; z = 15; u = 6 -> 3",
            "Return len(variables).",
            "Every variable needs its own box. How many boxes are needed?",
        ),
        asked(
            "names",
            comma,
            "The code assigns values to variables. Write the names alone, in the order given, with commas and spaces.",
            "List the names of the variables.",
            "What are the variables called?",
            "Everything to the left of the equals signs, separated by commas",
            "Drop the values and list what they are assigned to.",
            "w = 9; page = 50; c = 2 -> w, page, c",
            'Return ", ".join(variables).',
            "The variables are guests with the number of their seat. Read out just who is coming.",
        ),
        asked(
            "values",
            lambda variables: comma(variables.values()),
            "The code assigns values to variables. Write the values alone, in the order given, with commas and spaces.",
            "List the numbers without the names.",
            "Which values are assigned, one after another?",
            "Everything to the right of the equals signs, separated by commas",
            "Drop the names and list what is assigned to them.",
            "w = 9; page = 50; c = 2 -> 9, 50, 2",
            'Return ", ".join(map(str, variables.values())).',
            "The variables are items on a bill. Read out just the prices, in order.",
        ),
        asked(
            "even",
            lambda variables: comma(name for name, value in variables.items() if value % 2 == 0) or "none",
            "Check which variables have an even value. Write their names with commas and spaces, or none.",
            "Name the variables whose values are even, or none.",
            "Which variables hold a multiple of two? If there are none, say none.",
            "The names of all variables with even numbers, in order and separated by commas, or none",
            "Leave out variables with odd values and list the names of the others; if nothing is left, say none.",
            "w = 9; page = 50; c = 2 -> page, c",
            'Return ", ".join(name for name in variables if variables[name] % 2 == 0) or "none".',
            "The values are house numbers. Who lives on the even side of the street? Say none if it is nobody.",
        ),
        asked(
            "descending",
            lambda variables: comma(sorted(variables, key=variables.get, reverse=True)),
            "Order the variables by value, the largest first. Write only their names, with commas and spaces.",
            "Sort the names of the variables by descending value.",
            "Which variable is greatest, which comes next, and so on to the least?",
            "The names from the highest value down to the lowest, separated by commas",
            "Rank the variables by their numbers, from big to small, and leave the numbers out.",
            "w = 9; page = 50; c = 2 -> page, w, c",
            'Return ", ".join(sorted(variables, key=variables.get, reverse=True)).',
            "The variables are runners with their points. Read out the ranking, winner first.",
        ),
        asked(
            "alphabetical",
            lambda variables: code(sorted(variables.items(), key=itemgetter(0))),
            "Put the assignments into alphabetical order of the variables' names. Keep the semicolons and each value.",
            "Sort the statements by the name of the variable, from a to z.",
            "How does the code read with its assignments in alphabetical order?",
            "The same assignments, arranged by name",
            "Rearrange the code as a dictionary would order the names.",
            "page = 50; w = 9; c = 2 -> c = 2; page = 50; w = 9",
            'Return "; ".join(sorted(statements)).',
            "A tidy programmer declares variables as they would stand in a phone book. Tidy this code up.",
        ),
        asked(
            "reversed",
            lambda variables: code(reversed(variables.items())),
            "Write the assignments in reverse order. Each variable keeps its own value.",
            "Put the last assignment first and the first one last, reversing those between.",
            "How does the code read when its statements run from last to first?",
            "The same statements from right to left",
            "Reverse the order of the statements without changing any of them.",
            "m = 5; w = 80; c = 31 -> c = 31; w = 80; m = 5",
            'Return "; ".join(statements[::-1]).',
            "Start with what was assigned most recently and work back, statement by statement.",
        ),
        asked(
            "swapped",
            swapped,
            "Let the first and the last variable exchange their values. Write the code with the names where they were.",
            "Swap the values at the two ends of the code.",
            "What do the assignments look like if the first variable gets the last value and the last gets the first?",
            "The same code with its outermost values exchanged and its names in place",
            "Leave every name where it is, but put the last number first and the first number last.",
            "m = 5; w = 80; c = 31 -> m = 31; w = 80; c = 5",
            "Write the code as it stands after first, last = last, first.",
            "The one at the front and the one at the back trade what they carry. Write who carries what now.",
        ),
        asked(
            "doubled",
            lambda variables: code((name, 2 * value) for name, value in variables.items()),
            "Multiply every value by two. Write the code with the new values.",
            "Double all the numbers in the code.",
            "How do the assignments read when each value is twice as large?",
            "The same code with doubled values",
            "Keep the names and replace each number by twice that number.",
            "m = 5; w = 40; c = 31 -> m = 10; w = 80; c = 62",
            "Write the code as it stands after name *= 2 for every name.",
            "Everybody in the list gets as much again as they have. Write the list anew.",
        ),
        asked(
            "json",
            json.dumps,
            "Write the variables as one JSON object. The names are its keys.",
            "Convert the assignments to JSON.",
            "Which JSON object has these names and values?",
            "A JSON object with a number for each name in quotation marks",
            "Put braces around, quote the names, and use colons and commas.",
            'm = 5; w = 40 -> {"m": 5, "w": 40}',
            "Return json.dumps(variables).",
            "The assignments are to be sent to a web service. Write the body of the request.",
        ),
        asked(
            "keywords",
            lambda variables: f"dict({comma(f'{name}={value}' for name, value in variables.items())})",
            "Write a call of Python's dict. The assignments are its keyword arguments, without spaces around =.",
            "Turn the code into dict( ) with keyword arguments.",
            "Which call of dict makes a dictionary of these variables?",
            "A dict call with the variables as keywords, in the order given",
            "Remove the spaces around =, use commas for semicolons and wrap it all in dict( ).",
            "m = 5; w = 40 -> dict(m=5, w=40)",
            'Return f"dict({arguments})", where an argument is f"{name}={value}".',
            "A Python programmer wants to pass the values to dict by name. Write that call.",
        ),
        asked(
            "print",
            lambda variables: f"print({comma(variables)})",
            "Write a line of Python that prints all the variables. Use one call of print, with the names in order.",
            "Write the print call that shows every variable.",
            "Which call of print outputs the values of these variables?",
            "A print statement in Python 3 with all names as its arguments",
            "Put the names, separated by commas, between print( and ).",
            "m = 5; w = 40 -> print(m, w)",
            'Return f"print({names})".',
            "The programmer wants to see what the variables contain. Write the next line for her.",
        ),
        asked(
            "unpacking",
            lambda variables: f"{comma(variables)} = {comma(variables.values())}",
            "Write the assignments as a single one. All names come before the equals sign and all values after it.",
            "Merge the statements into one tuple assignment.",
            "How are these variables assigned with just one equals sign?",
            "One Python statement that unpacks all values into all names",
            "List the names, write =, and list the values.",
            "m = 5; w = 40 -> m, w = 5, 40",
            'Return f"{names} = {values}".',
            "The code is too long for a Python lover: let a single statement without semicolons do it all.",
        ),
        asked(
            "let",
            lambda variables: " ".join(f"let {name} = {value};" for name, value in variables.items()),
            "Translate the code into JavaScript. Each assignment becomes a let statement that ends in a semicolon.",
            "Put let before every assignment and a semicolon after it.",
            "How are these variables declared in JavaScript with let?",
            "A let statement for each variable, on one line",
            "Declare every variable with the keyword let and its value.",
            "m = 5; w = 40 -> let m = 5; let w = 40;",
            'Return " ".join(f"let {name} = {value};" for name, value in variables.items()).',
            "The code moves from Python to a web page's script. Declare the variables there.",
        ),
    ),
)
