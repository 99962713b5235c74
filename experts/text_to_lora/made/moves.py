"""A walk of two to five moves on a grid, such as "up 3, left 2, up 1"."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked

OFFSETS = {"up": (0, 1), "right": (1, 0), "down": (0, -1), "left": (-1, 0)}
"""How one step changes x and y. The directions follow each other clockwise."""
CLOCKWISE = {"up": "right", "right": "down", "down": "left", "left": "up"}
OPPOSITE = {"up": "down", "down": "up", "left": "right", "right": "left"}
MIRRORED = {"up": "up", "down": "down", "left": "right", "right": "left"}


class Move(NamedTuple):
    direction: str
    steps: int


def draw(rng: random.Random) -> list[Move]:
    """One walk in four ends where it began."""
    if rng.random() < 0.25:
        out = [a_move(rng) for _ in range(2)]
        walk = out + [Move(OPPOSITE[direction], steps) for direction, steps in out]
        return rng.sample(walk, len(walk))
    return [a_move(rng) for _ in range(rng.randint(2, 5))]


def a_move(rng: random.Random) -> Move:
    return Move(rng.choice(list(OFFSETS)), rng.randint(1, 9))


def show(walk: Iterable[Move]) -> str:
    return ", ".join(f"{direction} {steps}" for direction, steps in walk)


def turned(walk: Iterable[Move], turn: dict[str, str]) -> str:
    return show(Move(turn[direction], steps) for direction, steps in walk)


def end_x(walk: list[Move]) -> int:
    return sum(OFFSETS[direction][0] * steps for direction, steps in walk)


def end_y(walk: list[Move]) -> int:
    return sum(OFFSETS[direction][1] * steps for direction, steps in walk)


def towards(offset: int, positive: str, negative: str) -> str:
    if offset == 0:
        return "none"
    return positive if offset > 0 else negative


MOVES = Family(
    "moves",
    draw,
    show,
    (
        asked(
            "end_x",
            end_x,
            "A walk starts at (0, 0), and right counts as plus. Answer with the x coordinate at its end.",
            "Add up the steps to the right and subtract those to the left.",
            "What is x at the end, if it starts at 0 and grows to the right?",
            "The final x of a walk from the origin; left is negative",
            "Ignore up and down. How far to the right, with a minus if to the left, does the walk end?",
            "right 5, up 2, left 7 -> -2",
            "Return sum of steps * {'right': 1, 'left': -1}.get(direction, 0).",
            "A crab runs on the beach. How far to the right is it now, as a number that is negative on the left?",
        ),
        asked(
            "end_y",
            end_y,
            "A walk starts at (0, 0), and up counts as plus. Answer with the y coordinate at its end.",
            "Add up the steps upwards and subtract those downwards.",
            "What is y at the end, if it starts at 0 and grows upwards?",
            "The final y of a walk from the origin; down is negative",
            "Ignore left and right. How high, with a minus if below, does the walk end?",
            "up 5, left 2, down 6 -> -1",
            "Return sum of steps * {'up': 1, 'down': -1}.get(direction, 0).",
            "A lift goes up and down, and only that counts. On which floor is it, if it began at 0?",
        ),
        asked(
            "position",
            lambda walk: f"({end_x(walk)}, {end_y(walk)})",
            "A walk starts at (0, 0), with x to the right and y upwards. Answer with its end, as (x, y).",
            "Give both coordinates of the end in brackets, x first.",
            "At which point (x, y) does the walker stand after all moves from (0, 0)?",
            "The final position as a pair in brackets; left and down are negative",
            "Follow the walk from the origin and write the last point like (3, -1).",
            "left 4, up 6, right 1 -> (-3, 6)",
            "Return (x, y) after all moves.",
            "A robot sits on the crossing of two axes and obeys. Where is it in the end, as a pair?",
        ),
        asked(
            "moves",
            len,
            "You are given a walk. Answer with the number of moves, however long they are.",
            "Count the moves, not the steps.",
            "How many commands are there?",
            "The number of entries in the walk",
            "Say how often a direction is named.",
            "up 8, up 1, left 5 -> 3",
            "Return len(walk).",
            "Someone reads out the way one instruction at a time. How many instructions do you hear?",
        ),
        asked(
            "steps_in_all",
            lambda walk: sum(move.steps for move in walk),
            "You are given a walk. Answer with the number of steps in all moves together.",
            "Add up the steps, whatever their direction.",
            "How many steps are walked in all?",
            "The whole length of the walk",
            "Forget the directions and sum the numbers.",
            "up 4, down 3, left 2 -> 9",
            "Return sum(steps for direction, steps in walk).",
            "The walker wears a pedometer set to nought. What does it show afterwards?",
        ),
        asked(
            "last_direction",
            lambda walk: walk[-1].direction,
            "You are given a walk. Answer with the direction of its last move.",
            "Name the final direction.",
            "Which way does the walker go at the very end?",
            "The direction of the closing move, without its steps",
            "Go to the end of the walk and say up, down, left or right.",
            "left 3, up 9, right 2 -> right",
            "Return walk[-1].direction.",
            "The walker looks where it went just now. Which way is it looking?",
        ),
        asked(
            "first_direction",
            lambda walk: walk[0].direction,
            "You are given a walk. Answer with the direction of its first move.",
            "Name the direction at the start.",
            "Which way does the walker set out?",
            "The direction of the opening move, without its steps",
            "Copy the first word of the walk.",
            "down 3, up 9, right 2 -> down",
            "Return walk[0].direction.",
            "You leave the house by this route. Which way do you turn at the door?",
        ),
        asked(
            "way_back",
            lambda walk: turned(reversed(walk), OPPOSITE),
            "You are given a walk. Write the walk that leads back: last move first, and every direction reversed.",
            "Undo the moves one by one, from the last to the first.",
            "Which moves bring the walker back along the same path?",
            "The return journey by the same path",
            "Reverse the order of the moves, and swap up with down and left with right.",
            "up 4, left 1 -> right 1, down 4",
            "Return [(opposite(direction), steps) for direction, steps in reversed(walk)].",
            "You left a trail of crumbs. Describe how to follow it home.",
        ),
        asked(
            "longest",
            lambda walk: max(move.steps for move in walk),
            "You are given a walk. Answer with the number of steps in its longest move.",
            "Find the largest number of steps made in a single move.",
            "How far does the longest move go?",
            "The greatest step count of any move",
            "Compare the moves and give the biggest number.",
            "left 2, up 3, down 5 -> 5",
            "Return max(steps for direction, steps in walk).",
            "How many steps can the walker take at most before a new command comes?",
        ),
        asked(
            "letters",
            lambda walk: [move.direction[0].upper() for move in walk],
            "You are given a walk. Write each move's direction as one capital letter, with spaces between.",
            "Shorten the directions to U, D, L and R, and drop the steps.",
            "What is the walk in single letters, one for each move?",
            "Initials of the directions, in order, in capitals",
            "Write U for up, D for down, L for left and R for right, without numbers.",
            "down 2, left 8, up 1 -> D L U",
            "Return [direction[0].upper() for direction, steps in walk].",
            "Note the arrows of a game pad that were pressed, one letter for each.",
        ),
        asked(
            "closed",
            lambda walk: end_x(walk) == end_y(walk) == 0,
            "You are given a walk. Answer yes if it ends where it began, and no otherwise.",
            "Say whether the walk comes back to its start: yes or no.",
            "Is the walker back at the starting point in the end?",
            "A round trip or not, as yes or no",
            "Check that up and down cancel out, and left and right too. Reply yes or no.",
            "up 2, left 3, down 2, right 3 -> yes",
            "Return (x, y) == (0, 0) as yes or no.",
            "You walk your dog by this route. Do you end up at your own door?",
        ),
        asked(
            "net_vertical",
            lambda walk: towards(end_y(walk), "up", "down"),
            "You are given a walk. Answer up if it ends higher than it began, down if lower, and none if level.",
            "Say whether the walk leads up or down on the whole, or none if neither.",
            "Does the walker end above the start (up), below it (down) or level with it (none)?",
            "The net vertical direction: up, down or none",
            "Weigh the steps up against those down: name the side with more, or none if they are equal.",
            "up 2, down 5, right 9 -> down",
            "Return 'up' if y > 0 else 'down' if y < 0 else 'none'.",
            "A climber moves like this. Has she gained height (up), lost some (down) or neither (none)?",
        ),
        asked(
            "net_horizontal",
            lambda walk: towards(end_x(walk), "right", "left"),
            "You are given a walk. Answer right or left for the side of its start on which it ends, or none.",
            "Say whether the walk leads left or right on the whole, or none if neither.",
            "Does it end to the left of the start, to the right, or straight above, below or on it (none)?",
            "The net horizontal direction: left, right or none",
            "Weigh the steps left against those right: name the side with more, or none if they are equal.",
            "left 2, right 5, up 9 -> right",
            "Return 'right' if x > 0 else 'left' if x < 0 else 'none'.",
            "Two friends stand left and right of where you start. Whose side are you on afterwards, if any (none)?",
        ),
        asked(
            "mirrored",
            lambda walk: turned(walk, MIRRORED),
            "You are given a walk. Write it as a mirror shows it: left and right swapped, the rest as it is.",
            "Swap left and right, and leave up and down alone.",
            "What does the walk look like with its two sides exchanged?",
            "The walk's mirror image, left for right and right for left",
            "Replace every left by right and every right by left, in the same order.",
            "up 3, left 6, right 1 -> up 3, right 6, left 1",
            "Return [({'left': 'right', 'right': 'left'}.get(d, d), steps) for d, steps in walk].",
            "A dancer facing you copies your moves as your reflection does. Write down hers by her own left and right.",
        ),
        asked(
            "doubled",
            lambda walk: show(Move(direction, 2 * steps) for direction, steps in walk),
            "You are given a walk. Write it with twice as many steps in every move.",
            "Double each number of the walk.",
            "How does the walk read at twice its size?",
            "The same walk, every move two times as long",
            "Keep the directions and multiply the steps by two.",
            "left 4, up 1 -> left 8, up 2",
            "Return [(direction, 2 * steps) for direction, steps in walk].",
            "A giant takes the same way, going double the distance each time. Write the giant's walk.",
        ),
        asked(
            "steps_alone",
            lambda walk: [move.steps for move in walk],
            "You are given a walk. Write the numbers of steps alone, in order, with spaces between.",
            "Leave out the directions and keep the step counts.",
            "How long is each move, one number after another?",
            "The steps of the moves, not added up and without directions",
            "Cross out every word and comma of the walk.",
            "right 4, down 1, up 6 -> 4 1 6",
            "Return [steps for direction, steps in walk].",
            "For each command, say only how far it went.",
        ),
        asked(
            "distance",
            lambda walk: abs(end_x(walk)) + abs(end_y(walk)),
            "You are given a walk on a grid. Answer with the fewest steps that lead from its end to its start.",
            "Add the horizontal and the vertical distance between start and end.",
            "How many steps up, down, left or right is the end away from the start?",
            "The shortest way home in grid steps, 0 if already there",
            "Cancel opposite steps, then count those that remain.",
            "up 5, left 2, down 1 -> 6",
            "Return abs(x) + abs(y) at the end of the walk.",
            "A taxi in a town of square blocks takes the shortest way to where you set out. How many blocks is it?",
        ),
        asked(
            "upward_steps",
            lambda walk: sum(move.steps for move in walk if move.direction == "up"),
            "You are given a walk. Answer with the number of steps in its upward moves, and 0 if it has none.",
            "Add up only the steps that go up, and subtract nothing.",
            "How many steps are climbed, if steps down do not count?",
            "The sum over the moves named 'up' alone",
            "Skip down, left and right, and total what is left.",
            "up 3, down 2, up 4 -> 7",
            "Return sum(steps for direction, steps in walk if direction == 'up').",
            "Only climbing makes the walker tired. How many tiring steps are there?",
        ),
        asked(
            "turned_right",
            lambda walk: turned(walk, CLOCKWISE),
            "You are given a walk. Turn every direction by a quarter to the right, so that up becomes right.",
            "Rotate the whole walk clockwise by 90 degrees.",
            "Which moves make the same walk after a quarter turn clockwise?",
            "The walk turned so that up is right, right is down, down is left and left is up",
            "Replace each direction by the next one clockwise and keep the steps.",
            "up 4, right 2, down 7 -> right 4, down 2, left 7",
            "Return [(clockwise[direction], steps) for direction, steps in walk].",
            "The map was turned a quarter to the right by mistake. Which moves does a reader of it make?",
        ),
        asked(
            "without_last",
            lambda walk: show(walk[:-1]),
            "You are given a walk. Write it again without its last move.",
            "Drop the final move and keep the others.",
            "Which moves come before the last one?",
            "All moves but the closing one, as they are",
            "Copy the walk and stop one move early.",
            "up 3, left 4, down 5 -> up 3, left 4",
            "Return walk[:-1].",
            "The walker grew tired and skipped the last command. Write what was done.",
        ),
    ),
)
