"""A number with a metric unit, such as "3.5 km" or "18 °C"."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from math import floor

from experts.text_to_lora.made.family import Family, asked


@dataclass(frozen=True)
class Quantity:
    name: str
    base: str
    """The symbol of the unit to which all others convert."""
    tool: str
    """What it is measured with."""


LENGTH = Quantity("length", "m", "tape measure")
MASS = Quantity("mass", "kg", "scales")
VOLUME = Quantity("volume", "l", "measuring jug")
TIME = Quantity("time", "s", "clock")
TEMPERATURE = Quantity("temperature", "K", "thermometer")


@dataclass(frozen=True)
class Unit:
    symbol: str
    name: str
    quantity: Quantity
    size: float
    """In base units."""
    american: str
    """The symbol of the unit that Americans use instead."""
    per_american: float
    """How many of this unit make one American unit."""


CELSIUS = Unit("°C", "degrees Celsius", TEMPERATURE, 1, "°F", 5 / 9)
UNITS = (
    Unit("mm", "millimetres", LENGTH, 0.001, "in", 25.4),
    Unit("cm", "centimetres", LENGTH, 0.01, "in", 2.54),
    Unit("m", "metres", LENGTH, 1, "ft", 0.3048),
    Unit("km", "kilometres", LENGTH, 1000, "mi", 1.609344),
    Unit("g", "grams", MASS, 0.001, "oz", 28.349523125),
    Unit("kg", "kilograms", MASS, 1, "lb", 0.45359237),
    Unit("t", "tonnes", MASS, 1000, "short tons", 0.90718474),
    Unit("ml", "millilitres", VOLUME, 0.001, "fl oz", 29.5735295625),
    Unit("cl", "centilitres", VOLUME, 0.01, "fl oz", 2.95735295625),
    Unit("l", "litres", VOLUME, 1, "gal", 3.785411784),
    Unit("s", "seconds", TIME, 1, "s", 1),
    Unit("min", "minutes", TIME, 60, "min", 1),
    Unit("h", "hours", TIME, 3600, "h", 1),
    CELSIUS,
)
"""Of one quantity, the smaller ones first."""


@dataclass(frozen=True)
class Measure:
    number: float
    unit: Unit

    def __str__(self) -> str:
        return written(self.number, self.unit.symbol)


def draw(rng: random.Random) -> Measure:
    """More than one of a unit, so that its name is a plural."""
    whole, tens = rng.randint(2, 99), 10 * rng.randint(10, 99)
    tenths = (10 * rng.randint(1, 9) + rng.randint(1, 9)) / 10  # never whole
    return Measure(rng.choice((whole, tens, tenths)), rng.choice(UNITS))


def decimal(number: float, places: int = 4) -> str:
    """Without zeros at the end."""
    return f"{round(number, places):.10g}"


def written(number: float, unit: str, places: int = 4) -> str:
    return f"{decimal(number, places)} {unit}"


def in_other_unit(measure: Measure, steps: int) -> str:
    """The same measure in a unit so many steps larger."""
    ladder = [unit for unit in UNITS if unit.quantity == measure.unit.quantity]
    place = ladder.index(measure.unit) + steps
    if not 0 <= place < len(ladder):
        return "none"
    return written(measure.number * measure.unit.size / ladder[place].size, ladder[place].symbol)


def in_base_unit(measure: Measure) -> str:
    zero = 273.15 if measure.unit == CELSIUS else 0
    return written(measure.number * measure.unit.size + zero, measure.unit.quantity.base)


def in_american_unit(measure: Measure) -> str:
    zero = 32 if measure.unit == CELSIUS else 0
    return written(measure.number / measure.unit.per_american + zero, measure.unit.american, 2)


MEASURE = Family(
    "measure",
    draw,
    str,
    (
        asked(
            "smaller_unit",
            lambda measure: in_other_unit(measure, -1),
            "Convert the measure to the next smaller of km, m, cm, mm; t, kg, g; l, cl, ml; h, min, s. "
            "Answer none for the smallest of them and for °C.",
            "Write the same amount in the next smaller unit: none if there is none.",
            "What is it one unit further down, as from m to cm, kg to g, cl to ml or h to min?",
            "The same amount in the unit one step below, or none at the bottom of the scale",
            "Go one unit down and multiply to match; mm, g, ml, s and °C give none.",
            "2.5 kg -> 2500 g",
            "Return measure.to(units[units.index(unit) - 1]), or none if there is no smaller unit.",
            "You want finer marks on the instrument. Express the same thing in the next finer unit, or say none.",
        ),
        asked(
            "larger_unit",
            lambda measure: in_other_unit(measure, 1),
            "Convert the measure to the next larger of mm, cm, m, km; g, kg, t; ml, cl, l; s, min, h. "
            "Answer none for the largest of them and for °C, and use up to four decimals.",
            "Write the same amount in the next larger unit: none if there is none.",
            "What is it one unit further up, as from cm to m, g to kg, ml to cl or min to h?",
            "The same amount in the unit one step above, or none at the top of the scale",
            "Go one unit up and divide to match, to four decimals; km, t, l, h and °C give none.",
            "650 m -> 0.65 km",
            "Return measure.to(units[units.index(unit) + 1]), or none if there is no larger unit.",
            "The number looks too big. Express the same thing in the next coarser unit, or say none.",
        ),
        asked(
            "base_unit",
            in_base_unit,
            "Convert the measure to a standard unit. Lengths go to m, masses to kg, volumes to l, times to s, °C to K.",
            "Express it in metres, kilograms, litres, seconds or kelvins, whichever fits.",
            "How many m, kg, l, s or K is this?",
            "The measure in the base unit of its kind: m, kg, l, s or K",
            "Get rid of prefixes and of minutes and hours: only m, kg, l, s and K are allowed.",
            "70 ml -> 0.07 l",
            "Return measure.to_base_units(), with l for volumes.",
            "A physicist puts everything into m, kg, l, s or K before any calculation. Do so here.",
        ),
        asked(
            "american",
            in_american_unit,
            "Convert the measure to US units, to two decimals. Use in for mm and cm, ft, mi, oz, lb, short tons, "
            "fl oz for ml and cl, gal and °F; times stay as they are.",
            "Write it in American units, with times unchanged.",
            "What is this in inches, feet, miles, ounces, pounds, short tons, gallons or °F?",
            "The customary US equivalent, rounded to hundredths, where h, min and s need none",
            "Replace the metric unit by the American one of similar size, and leave times alone.",
            "10 km -> 6.21 mi",
            'Return measure.to_system("US", digits=2).',
            "A visitor from Texas does not know the metric system. Tell her what this is.",
        ),
        asked(
            "unit_name",
            lambda measure: measure.unit.name,
            "The measure ends in an abbreviated unit. Answer with the unit's full name in the plural and no number.",
            "Write out the name of the unit alone, in the plural.",
            "What does the abbreviation after the number stand for?",
            "The unit's name in full, such as decibels for dB, and no number",
            "Drop the number and spell out what is left as a plural.",
            "7 kg -> kilograms",
            "Return unit.long_name_plural.",
            "Somebody does not know what the letters after the number mean. Tell them the word.",
        ),
        asked(
            "spelled_out",
            lambda measure: f"{decimal(measure.number)} {measure.unit.name}",
            "Replace the abbreviated unit by its full name in the plural. Keep the number in front of it.",
            "Copy the number and spell the unit out.",
            "How is it written in digits but without an abbreviation?",
            "The number followed by the full name of its unit",
            "Expand the abbreviation and leave the rest as it is.",
            "7 kg -> 7 kilograms",
            'Return f"{number} {unit.long_name_plural}".',
            "A newspaper prints numbers in digits but no abbreviated units. Write it as the newspaper would.",
        ),
        asked(
            "number",
            lambda measure: decimal(measure.number),
            "A number with a unit is given. Answer with the number alone.",
            "Remove the unit.",
            "Which number stands before the unit?",
            "Just the figure, without its unit",
            "Copy everything up to the space.",
            "64 cm -> 64",
            "Return measure.magnitude.",
            "The column of the table already says the unit. Write what goes into the cell.",
        ),
        asked(
            "unit",
            lambda measure: measure.unit.symbol,
            "A number with a unit is given. Answer with the unit's symbol alone, as it is written.",
            "Remove the number and keep the abbreviation.",
            "Which symbol stands after the number?",
            "Just the abbreviated unit",
            "Copy everything after the space.",
            "64 cm -> cm",
            'Return measure.split(" ")[1].',
            "The numbers go into the table's cells, and the symbol goes to the head of the column. Write the symbol.",
        ),
        asked(
            "quantity",
            lambda measure: measure.unit.quantity.name,
            "Say what kind of thing is measured. Answer with length, mass, volume, time or temperature.",
            "Name the physical quantity.",
            "Is this a length, a mass, a volume, a time or a temperature?",
            "The quantity to which the unit belongs, as one word",
            "Classify the measure by what it measures.",
            "9 cl -> volume",
            "Return unit.dimension, one of length, mass, volume, time and temperature.",
            "Would a form ask for this under length, mass, volume, time or temperature?",
        ),
        asked(
            "tool",
            lambda measure: measure.unit.quantity.tool,
            "What would measure this? Answer with tape measure, scales, measuring jug, clock or thermometer.",
            "Name the instrument that shows such a measure: tape measure, scales, measuring jug, clock or thermometer.",
            "Would you need a clock, scales, a tape measure, a measuring jug or a thermometer?",
            "The household instrument for this kind of measure",
            "Pick the tool that belongs to the unit, such as scales for weights.",
            "25 ml -> measuring jug",
            "Return TOOLS[unit.dimension].",
            "You must check this figure yourself. What do you fetch from the cupboard?",
        ),
        asked(
            "doubled",
            lambda measure: written(2 * measure.number, measure.unit.symbol),
            "Multiply the measure by two. Keep the unit.",
            "Double the amount, with its unit.",
            "What is twice as much, in the same unit?",
            "Two times the measure",
            "Add the measure to itself.",
            "3.2 l -> 6.4 l",
            "Return 2 * measure.",
            "One needs this much, so how much do two need?",
        ),
        asked(
            "halved",
            lambda measure: written(measure.number / 2, measure.unit.symbol),
            "Divide the measure by two. Keep the unit.",
            "Halve the amount, with its unit.",
            "What is half as much, in the same unit?",
            "One half of the measure",
            "Split it into two equal parts and give the size of one.",
            "7 kg -> 3.5 kg",
            "Return measure / 2.",
            "You are in the middle between zero and this. Where are you?",
        ),
        asked(
            "tenfold",
            lambda measure: written(10 * measure.number, measure.unit.symbol),
            "Multiply the measure by ten. Keep the unit.",
            "Give ten times the amount, with its unit.",
            "What is ten times as much, in the same unit?",
            "The measure times ten",
            "Append a zero to a whole number, or move the decimal point one place to the right; keep the unit.",
            "4.7 g -> 47 g",
            "Return 10 * measure.",
            "A pack holds ten of them, and one comes to this. What does the pack come to?",
        ),
        asked(
            "plus_one",
            lambda measure: written(measure.number + 1, measure.unit.symbol),
            "Add one of the same unit to the measure. Answer with number and unit.",
            "Increase the number by one and keep the unit.",
            "What is one unit more than this?",
            "The measure plus one of its own unit",
            "Raise the figure by 1 and copy what follows it.",
            "6.3 m -> 7.3 m",
            "Return Measure(number + 1, unit).",
            "The display goes up by one. What does it show, with its unit?",
        ),
        asked(
            "rounded",
            lambda measure: written(floor(measure.number + 0.5), measure.unit.symbol),
            "Round the measure to a whole number of its unit, halves upwards. A whole number stays as it is.",
            "Round to the nearest whole number and keep the unit.",
            "What is it without decimals, rounded?",
            "The nearest whole amount, in the same unit",
            "Remove the decimals, going up from .5 and down below it, and repeat the unit.",
            "5.8 km -> 6 km",
            "Return Measure(floor(number + 0.5), unit).",
            "The exact decimals do not matter. Give the whole figure it comes closest to.",
        ),
        asked(
            "no_space",
            lambda measure: f"{decimal(measure.number)}{measure.unit.symbol}",
            "There is a space between number and unit. Write the measure without it.",
            "Remove the space.",
            "How is it written as one word, with the symbol right behind the digits?",
            "Number and symbol run together",
            "Join what stands on the two sides of the space.",
            "52 mm -> 52mm",
            'Return measure.replace(" ", "").',
            "The label is narrow, so print everything without a gap.",
        ),
        asked(
            "json",
            lambda measure: json.dumps({"value": measure.number, "unit": measure.unit.symbol}, ensure_ascii=False),
            "Write the measure as a JSON object. It has the keys value, for the number, and unit, for the symbol.",
            'Convert it to JSON with "value" and "unit".',
            "How is the measure written in JSON, as a value and its unit?",
            "A JSON object that holds the number under value and the symbol under unit",
            "Serialise number and unit for a web service, in braces.",
            '8 min -> {"value": 8, "unit": "min"}',
            'Return json.dumps({"value": number, "unit": unit}, ensure_ascii=False).',
            "A program wants it with braces, quotation marks and the names value and unit. Write what it wants.",
        ),
        asked(
            "decimal_comma",
            lambda measure: str(measure).replace(".", ","),
            "Write the measure as Germans do, with a comma for the decimal point. Whole numbers stay as they are.",
            "Replace the decimal point, if there is one, by a comma.",
            "How would it be printed in France or Germany, where decimals follow a comma?",
            "The measure with a comma instead of a point, otherwise unchanged",
            "Copy it, but write , for every dot.",
            "1.6 kg -> 1,6 kg",
            'Return measure.replace(".", ",").',
            "A shop in Berlin wants this on a sign and does not use points in numbers. Write the sign.",
        ),
    ),
)
