"""Two to four things bought, such as "3 apples at 2 euros, 2 pears at 1 euro"."""

from __future__ import annotations

import random
from operator import attrgetter
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked

ITEMS = ("apples", "pears", "lemons", "carrots", "onions", "plums", "eggs", "muffins", "candles", "cups")


class Line(NamedTuple):
    """So many of one kind, at so many euros each."""

    pieces: int
    item: str
    price: int

    @property
    def cost(self) -> int:
        return self.pieces * self.price


def draw(rng: random.Random) -> list[Line]:
    """No two kinds have a number of pieces or a price in common, so the most and the dearest are clear."""
    kinds = rng.randint(2, 4)
    pieces = rng.sample(range(2, 7), kinds)
    prices = rng.sample(range(1, 6), kinds)
    return [Line(*line) for line in zip(pieces, rng.sample(ITEMS, kinds), prices, strict=True)]


def show(lines: list[Line]) -> str:
    return ", ".join(f"{pieces} {item} at {price} euro{'s' * (price > 1)}" for pieces, item, price in lines)


def total(lines: list[Line]) -> int:
    return sum(line.cost for line in lines)


def with_cents(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


SHOPPING = Family(
    "shopping",
    draw,
    show,
    (
        asked(
            "total",
            total,
            "You are given what was bought, with the price of one of each. Answer with the euros to pay in all.",
            "Work out the total of the bill in euros.",
            "How much does everything cost together?",
            "The sum of the whole purchase, as a number of euros",
            "Multiply each count by its price and add the results.",
            "2 cups at 4 euros, 5 eggs at 1 euro -> 13",
            "Return sum(count * price for count, item, price in lines).",
            "You stand at the till. What does the cashier ask for?",
        ),
        asked(
            "things",
            lambda lines: sum(line.pieces for line in lines),
            "You are given a shopping list. Answer with the number of single things bought, all kinds together.",
            "Add up the counts and forget the prices.",
            "How many pieces are in the bag?",
            "The number of items carried home",
            "Count every single thing that was bought.",
            "4 plums at 2 euros, 3 melons at 4 euros -> 7",
            "Return sum(count for count, item, price in lines).",
            "The scanner beeps once for each piece. How often does it beep?",
        ),
        asked(
            "dearest",
            lambda lines: max(lines, key=attrgetter("price")).item,
            "You are given a shopping list. Name the kind of thing of which a single one costs most.",
            "Name what has the highest price per piece.",
            "Of which kind is a single piece the most expensive?",
            "The dearest kind, going by the price of one",
            "Compare the prices, not the sums, and name the thing with the greatest.",
            "5 onions at 1 euro, 2 candles at 3 euros, 4 eggs at 2 euros -> candles",
            "Return max(lines, key=price).item.",
            "If you dropped a single piece on the way home, which kind would cost you most?",
        ),
        asked(
            "cheapest",
            lambda lines: min(lines, key=attrgetter("price")).item,
            "You are given a shopping list. Name the kind of thing of which a single one costs least.",
            "Name what has the lowest price per piece.",
            "Of which kind is a single piece the least expensive?",
            "The cheapest kind, going by the price of one",
            "Find the smallest price and say what it buys.",
            "2 lemons at 3 euros, 3 cups at 4 euros -> lemons",
            "Return min(lines, key=price).item.",
            "With few coins left, you want one more piece of something. Which kind is easiest on the purse?",
        ),
        asked(
            "kinds",
            len,
            "You are given a shopping list. Answer with the number of different kinds of thing on it.",
            "Count the kinds, not the pieces.",
            "How many different things were bought?",
            "The number of entries on the shopping list",
            "Count how often a price is named on the list.",
            "5 onions at 1 euro, 2 pears at 2 euros, 4 cups at 5 euros -> 3",
            "Return len(shopping_list).",
            "Each kind goes into a paper bag of its own. How many bags are needed?",
        ),
        asked(
            "names",
            lambda lines: ", ".join(line.item for line in lines),
            "You are given a shopping list. Write the names of the things alone, in order, with commas between.",
            "Leave out all counts and prices.",
            "What was bought, without saying how many or for how much?",
            "The bare names from the list, separated by commas, as they come",
            "Copy the kinds of thing in the order given, and nothing else.",
            "5 plums at 1 euro, 3 eggs at 2 euros -> plums, eggs",
            "Return ', '.join(item for count, item, price in lines).",
            "Tell someone over the phone just which things you got.",
        ),
        asked(
            "first_cost",
            lambda lines: lines[0].cost,
            "You are given a shopping list. Answer with the euros paid for all pieces of the first kind together.",
            "Multiply count and price of the first entry.",
            "How much did the first kind of thing cost in all?",
            "The cost of the list's first line, in euros",
            "Take the entry at the start and work out what all its pieces come to.",
            "3 pencils at 4 euros, 2 eggs at 1 euro -> 12",
            "Return lines[0].count * lines[0].price.",
            "A friend pays only for what stands first. What does the friend owe?",
        ),
        asked(
            "change",
            lambda lines: 100 - total(lines),
            "You are given what was bought, with prices. Answer with the change from a note of 100 euros.",
            "Subtract the whole bill from 100.",
            "How many euros come back if you pay with a hundred?",
            "The change from 100 euros",
            "Add up the costs and say what is left of a hundred euros.",
            "2 cups at 5 euros, 5 eggs at 2 euros -> 80",
            "Return 100 - sum(count * price for count, item, price in lines).",
            "Granny sent you with a hundred-euro note. What do you bring her back?",
        ),
        asked(
            "ten_off",
            lambda lines: with_cents(90 * total(lines)),
            "You are given what was bought, with prices. Take ten per cent off the total; give it with two decimals.",
            "Work out the bill after a discount of 10 %, with cents.",
            "What is to pay if the shop gives a tenth off the sum?",
            "Nine tenths of the total, with two decimal places",
            "Add up the costs, multiply by 0.9, and show two decimals.",
            "2 plums at 3 euros, 6 eggs at 1 euro -> 10.80",
            "Return f'{0.9 * total:.2f}'.",
            "You hold a voucher for ten per cent off everything. What will you pay, to the cent?",
        ),
        asked(
            "first_price",
            lambda lines: lines[0].price,
            "You are given a shopping list. Answer with the price of a single piece of the first kind.",
            "Copy the first price.",
            "What does one piece of the first thing cost?",
            "The euros for one of what stands first",
            "Find the number after the first 'at'.",
            "4 muffins at 3 euros, 2 cups at 5 euros -> 3",
            "Return lines[0].price.",
            "Read out the price tag on the shelf of the first thing.",
        ),
        asked(
            "line_costs",
            lambda lines: [line.cost for line in lines],
            "You are given a shopping list. For each kind write count times price, in order, with spaces between.",
            "Work out the cost of each entry separately.",
            "What does each kind come to by itself, one number after another?",
            "The products of count and price, in order, not added up",
            "Multiply within each entry and list the results.",
            "2 cups at 4 euros, 5 eggs at 1 euro -> 8 5",
            "Return [count * price for count, item, price in lines].",
            "Fill in the last column of the bill, row by row, without a sum.",
        ),
        asked(
            "doubled",
            lambda lines: 2 * total(lines),
            "You are given what was bought, with prices. Answer with the total if twice as many of each were bought.",
            "Work out the bill for double the amounts.",
            "How many euros would the same shopping done twice cost?",
            "Two times the sum of the purchase",
            "Add up all costs and multiply by two.",
            "3 eggs at 2 euros, 4 plums at 1 euro -> 20",
            "Return 2 * sum(count * price for count, item, price in lines).",
            "You buy all this for yourself and again for your neighbour. What do you pay?",
        ),
        asked(
            "last_item",
            lambda lines: lines[-1].item,
            "You are given a shopping list. Answer with the name of the last thing on it.",
            "Name the kind at the end of the list.",
            "Which thing was written down last?",
            "The final entry's name, without count or price",
            "Go to the end of the shopping list and say what stands there.",
            "2 pears at 4 euros, 5 eggs at 1 euro, 3 cups at 2 euros -> cups",
            "Return lines[-1].item.",
            "You pick things up in the order of the list. What goes into the basket at the very end?",
        ),
        asked(
            "most_pieces",
            lambda lines: max(lines, key=attrgetter("pieces")).item,
            "You are given a shopping list. Name the kind of which the most pieces were bought.",
            "Name the thing with the highest count.",
            "Of which thing are there more than of any other?",
            "The kind bought in the largest number",
            "Ignore the prices and name what there is most of.",
            "2 cups at 5 euros, 6 lemons at 3 euros, 3 eggs at 2 euros -> lemons",
            "Return max(lines, key=count).item.",
            "One heap on the kitchen table has more pieces than the rest. What is in it?",
        ),
        asked(
            "one_of_each",
            lambda lines: sum(line.price for line in lines),
            "You are given a shopping list with prices. Answer with the cost of just one piece of each kind.",
            "Add up the prices and forget the counts.",
            "What would a single piece of every kind cost together?",
            "The sum of the prices per piece",
            "Pretend that every count is one and work out the bill.",
            "4 eggs at 1 euro, 3 cups at 5 euros -> 6",
            "Return sum(price for count, item, price in lines).",
            "You only want to taste: one piece of each. How many euros is that?",
        ),
        asked(
            "no_prices",
            lambda lines: ", ".join(f"{line.pieces} {line.item}" for line in lines),
            "You are given a shopping list with prices. Write it again without the prices.",
            "Remove every price and keep the counts with their things.",
            "What is bought, and how many of each, with no word of money?",
            "Counts and names only, separated by commas",
            "Cross out 'at' and all that belongs to it in each entry.",
            "3 eggs at 2 euros, 5 plums at 1 euro -> 3 eggs, 5 plums",
            "Return ', '.join(f'{count} {item}' for count, item, price in lines).",
            "Write the note that you take to the shop, before you know what anything costs.",
        ),
        asked(
            "price_list",
            lambda lines: ", ".join(f"{line.item} {line.price}" for line in lines),
            "You are given a shopping list. Write each thing followed by the price of one, with commas between.",
            "Turn the list into a price list without counts.",
            "What does one of each thing cost, as in 'pears 3, eggs 1'?",
            "Names with their prices as numbers, no counts",
            "Drop the counts, 'at' and 'euros'; keep each name and its price.",
            "3 eggs at 2 euros, 5 plums at 1 euro -> eggs 2, plums 1",
            "Return ', '.join(f'{item} {price}' for count, item, price in lines).",
            "Chalk the shop's board for these things: what it is, and the euros for one.",
        ),
        asked(
            "without_first",
            lambda lines: total(lines[1:]),
            "You are given what was bought, with prices. Answer with the total of everything except the first kind.",
            "Work out the bill with the first entry crossed out.",
            "How many euros does the rest cost if the first thing is put back?",
            "The sum of all lines but the first",
            "Skip the first kind and add up the costs of those after it.",
            "5 eggs at 1 euro, 2 cups at 4 euros, 3 pears at 2 euros -> 14",
            "Return sum(line.cost for line in lines[1:]).",
            "The shop gives you the first kind for nothing. What is left to pay?",
        ),
        asked(
            "over_thirty",
            lambda lines: total(lines) > 30,
            "You are given what was bought, with prices. Answer yes if the total is more than 30 euros, otherwise no.",
            "Say whether the bill exceeds 30 euros: yes or no.",
            "Does everything together cost over thirty euros?",
            "More than 30 euros or not, as yes or no",
            "Add up the costs and compare with thirty; exactly thirty is a no.",
            "2 eggs at 1 euro, 6 cups at 5 euros -> yes",
            "Return sum(count * price for count, item, price in lines) > 30 as yes or no.",
            "You have three ten-euro notes. Are you short of money at the till, yes or no?",
        ),
        asked(
            "alphabetical",
            lambda lines: ", ".join(sorted(line.item for line in lines)),
            "You are given a shopping list. Write the names of the things in alphabetical order, with commas between.",
            "Sort what was bought from A to Z, names only.",
            "In which order would a dictionary have these things?",
            "The kinds by alphabet, separated by commas, without counts or prices",
            "Take the names from the list and put them in order of their letters.",
            "3 pears at 2 euros, 5 eggs at 1 euro -> eggs, pears",
            "Return ', '.join(sorted(item for count, item, price in lines)).",
            "Make labels for these things and file them under their first letters.",
        ),
    ),
)
