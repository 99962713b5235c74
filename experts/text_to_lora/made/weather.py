"""The weather of a day, such as "Mon: 4 to 11 °C, rain 3 mm, wind W"."""

from __future__ import annotations

import random
from typing import NamedTuple

from experts.text_to_lora.made.date import WEEKDAYS
from experts.text_to_lora.made.family import Family, asked

WINDS = {
    "N": "north",
    "NE": "north-east",
    "E": "east",
    "SE": "south-east",
    "S": "south",
    "SW": "south-west",
    "W": "west",
    "NW": "north-west",
}
"""Where a wind comes from, clockwise."""


class Weather(NamedTuple):
    day: int
    """Days after Monday."""
    low: int
    high: int
    rain: int
    wind: str


def draw(rng: random.Random) -> Weather:
    """Four days in ten are dry."""
    low = rng.randint(-9, 20)
    rain = 0 if rng.random() < 0.4 else rng.randint(1, 25)
    return Weather(rng.randrange(7), low, low + rng.randint(2, 12), rain, rng.choice(list(WINDS)))


def show(weather: Weather) -> str:
    day, low, high, rain, wind = weather
    return f"{WEEKDAYS[day][:3]}: {low} to {high} °C, rain {rain} mm, wind {wind}"


def opposite(wind: str) -> str:
    winds = list(WINDS)
    return winds[(winds.index(wind) + 4) % 8]


def warmth(weather: Weather) -> str:
    if weather.high < 10:
        return "cold"
    return "mild" if weather.high < 20 else "warm"


def rainfall(weather: Weather) -> str:
    if weather.rain == 0:
        return "dry"
    return "light" if weather.rain < 10 else "heavy"


def sentence(weather: Weather) -> str:
    rain = f"{weather.rain} mm of rain" if weather.rain else "no rain"
    return f"{WEEKDAYS[weather.day]} reached {weather.high} degrees and had {rain}."


WEATHER = Family(
    "weather",
    draw,
    show,
    (
        asked(
            "high",
            lambda weather: weather.high,
            "You are given a day's weather. Answer with the highest temperature as a number.",
            "Give the day's maximum temperature.",
            "How warm did it get at most?",
            "The upper end of the temperatures, without a unit",
            "Copy the number before the degree sign.",
            "Tue: -2 to 6 °C, rain 0 mm, wind N -> 6",
            "Return weather.high.",
            "What did the thermometer show in the warmest hour of the day?",
        ),
        asked(
            "low",
            lambda weather: weather.low,
            "You are given a day's weather. Answer with the lowest temperature as a number.",
            "Give the day's minimum temperature.",
            "How cold did it get at worst?",
            "The lower end of the temperatures, without a unit",
            "Copy the number between the colon and 'to', with its minus if it has one.",
            "Tue: -2 to 6 °C, rain 0 mm, wind N -> -2",
            "Return weather.low.",
            "What did the thermometer show in the coldest hour of the night?",
        ),
        asked(
            "range",
            lambda weather: weather.high - weather.low,
            "You are given a day's weather. Answer with the difference between its two temperatures.",
            "Subtract the lowest temperature from the highest.",
            "By how many degrees did the temperature change over the day?",
            "The span from the low to the high, in degrees",
            "Say how far apart the day's two temperatures are.",
            "Tue: -2 to 6 °C, rain 0 mm, wind N -> 8",
            "Return weather.high - weather.low.",
            "How far did the mercury rise from its lowest mark to its highest?",
        ),
        asked(
            "mean",
            lambda weather: f"{(weather.low + weather.high) / 2:g}",
            "You are given a day's weather. Answer with the mean of the lowest and the highest temperature.",
            "Average the day's two temperatures.",
            "Which temperature lies half-way between the low and the high?",
            "The middle of the temperatures, with .5 where needed",
            "Add the two temperatures and halve the sum.",
            "Sat: 4 to 11 °C, rain 2 mm, wind E -> 7.5",
            "Return (weather.low + weather.high) / 2.",
            "A statistician keeps one temperature for each day, midway between its extremes. Which one?",
        ),
        asked(
            "rained",
            lambda weather: weather.rain > 0,
            "You are given a day's weather. Answer yes if any rain fell, and no if it was dry.",
            "Say whether it rained at all: yes or no.",
            "Did it rain?",
            "Rain or not, as yes or no",
            "Reply no if the rain is 0 mm, and yes if it is more.",
            "Tue: 13 to 19 °C, rain 4 mm, wind SW -> yes",
            "Return weather.rain > 0 as yes or no.",
            "I left my washing on the line all day. Did it get wet?",
        ),
        asked(
            "rain_mm",
            lambda weather: weather.rain,
            "You are given a day's weather. Answer with the millimetres of rain as a number, 0 if it was dry.",
            "Give the rainfall in millimetres.",
            "How many mm of rain fell?",
            "The amount of rain as the number of millimetres, without a unit",
            "Copy the number before 'mm'.",
            "Sun: 13 to 19 °C, rain 14 mm, wind SW -> 14",
            "Return weather.rain.",
            "How high, in millimetres, does the water stand in the rain gauge?",
        ),
        asked(
            "rain_cm",
            lambda weather: f"{weather.rain / 10:g}",
            "You are given a day's weather. Answer with the rain in centimetres, as a number.",
            "Convert the rainfall from millimetres to centimetres.",
            "How many cm of rain fell?",
            "The rain divided by ten: centimetres, without a unit",
            "Move the point in the rain's number one place to the left; no rain stays 0.",
            "Sun: 13 to 19 °C, rain 14 mm, wind SW -> 1.4",
            "Return weather.rain / 10.",
            "My ruler in the bucket is marked in centimetres only. What does it show for the rain?",
        ),
        asked(
            "wind_word",
            lambda weather: WINDS[weather.wind],
            "You are given a day's weather. Write in words the direction that the wind comes from.",
            "Spell out the wind's letters, as in north-east.",
            "What is the wind's direction called in full?",
            "The wind as a word, hyphenated where it has two letters",
            "Replace N, E, S and W in the wind by words, with a hyphen between two of them.",
            "Wed: 8 to 12 °C, rain 0 mm, wind NW -> north-west",
            "Return {'N': 'north', 'NE': 'north-east', ...}[weather.wind].",
            "From which quarter did it blow, as a sailor says it in words?",
        ),
        asked(
            "wind_letters",
            lambda weather: weather.wind,
            "You are given a day's weather. Answer with the letters of the wind, as they are given.",
            "Copy the wind's direction in letters.",
            "Which letters stand for the wind?",
            "The wind alone, in one or two capitals",
            "Keep only the end of the line, after 'wind'.",
            "Wed: 8 to 12 °C, rain 0 mm, wind SE -> SE",
            "Return weather.wind.",
            "To which letters on the compass rose does the weathercock's beak point, facing the wind?",
        ),
        asked(
            "wind_opposite",
            lambda weather: opposite(weather.wind),
            "You are given a day's weather. Answer with the letters of the direction opposite to the wind's.",
            "Turn the wind's direction round by 180 degrees and write it in letters.",
            "Towards which direction does the wind blow, in letters, if it comes from the one given?",
            "The opposite of the wind, in one or two capitals",
            "Swap N with S and E with W in the wind.",
            "Wed: 8 to 12 °C, rain 0 mm, wind NE -> SW",
            "Return opposite(weather.wind).",
            "A balloon drifts with this wind. Which way does it fly, in compass letters?",
        ),
        asked(
            "day",
            lambda weather: WEEKDAYS[weather.day],
            "You are given a day's weather. Answer with the full name of the day.",
            "Spell out the weekday.",
            "On which day of the week was this, in full?",
            "The day's whole name in place of its three letters",
            "Complete the abbreviation at the beginning.",
            "Thu: 1 to 9 °C, rain 7 mm, wind S -> Thursday",
            "Return WEEKDAYS[weather.day].",
            "Which heading does this day's column have in a newspaper that never shortens weekdays?",
        ),
        asked(
            "next_day",
            lambda weather: WEEKDAYS[(weather.day + 1) % 7],
            "You are given a day's weather. Answer with the full name of the day after it.",
            "Name the weekday that follows.",
            "For which day, in full, will the next report be?",
            "Tomorrow's weekday, seen from this day; after Sunday comes Monday",
            "Go one day further in the week and write its full name.",
            "Thu: 1 to 9 °C, rain 7 mm, wind S -> Friday",
            "Return WEEKDAYS[(weather.day + 1) % 7].",
            "Tomorrow will be better, they say. Which day of the week is that?",
        ),
        asked(
            "day_before",
            lambda weather: WEEKDAYS[(weather.day - 1) % 7],
            "You are given a day's weather. Answer with the full name of the day before it.",
            "Name the weekday that comes just ahead of this one.",
            "For which day, in full, was the previous report?",
            "Yesterday's weekday, seen from this day; before Monday comes Sunday",
            "Go one day back in the week and write its full name.",
            "Thu: 1 to 9 °C, rain 7 mm, wind S -> Wednesday",
            "Return WEEKDAYS[(weather.day - 1) % 7].",
            "This was forecast a day ahead. On which day of the week was the forecast made?",
        ),
        asked(
            "frost",
            lambda weather: weather.low < 0,
            "You are given a day's weather. Answer yes if the temperature fell below zero, and no otherwise.",
            "Say whether there was frost, that is less than 0 °C: yes or no.",
            "Did the temperature drop below freezing point?",
            "Frost or none, as yes or no; 0 °C itself is none",
            "Look for a minus before the lowest temperature and reply yes if there is one, else no.",
            "Fri: -3 to 12 °C, rain 0 mm, wind E -> yes",
            "Return weather.low < 0 as yes or no.",
            "Should I have brought my lemon trees inside, as they cannot bear minus degrees?",
        ),
        asked(
            "coat",
            lambda weather: weather.high <= 10,
            "Whoever is outside needs a coat on days of 10 °C at most. Answer yes or no for the weather given.",
            "Say yes if the highest temperature is 10 or less, and no if it is more.",
            "Is a coat needed, if one is worn when it never gets warmer than ten degrees?",
            "Coat or not, as yes or no: a high of up to 10 °C asks for one",
            "Compare the day's maximum with ten, and reply no only if it is above.",
            "Fri: 5 to 10 °C, rain 0 mm, wind E -> yes",
            "Return weather.high <= 10 as yes or no.",
            "Grandfather wears his coat unless it gets warmer than 10 degrees. Did he wear it, yes or no?",
        ),
        asked(
            "warmth",
            warmth,
            "A day's weather is given. Call it cold if its high is below 10 °C, mild below 20 °C, and otherwise warm.",
            "Say cold, mild or warm, going by the highest temperature.",
            "Was the day cold (under 10 degrees at most), warm (20 or more) or mild (between)?",
            "The day's warmth in one word: cold, mild from 10 °C or warm from 20 °C",
            "Sort the maximum into cold up to 9, mild from 10 to 19, and warm from 20 on.",
            "Mon: 15 to 21 °C, rain 0 mm, wind W -> warm",
            "Return 'cold' if high < 10 else 'mild' if high < 20 else 'warm'.",
            "Woollens, a jumper or short sleeves? Say cold, mild or warm for this day.",
        ),
        asked(
            "rainfall",
            rainfall,
            "A day's weather is given. Call the rain dry at 0 mm, light below 10 mm, and heavy from 10 mm on.",
            "Say dry, light or heavy, going by the amount of rain.",
            "Was it dry (no rain), light (1 to 9 mm) or heavy (10 mm or more)?",
            "The rain in one word: dry, light or heavy",
            "Sort the rain into dry for 0, light up to 9 mm, and heavy above.",
            "Mon: 15 to 21 °C, rain 11 mm, wind W -> heavy",
            "Return 'dry' if rain == 0 else 'light' if rain < 10 else 'heavy'.",
            "No puddles, small ones or floods? Say dry, light or heavy for this day.",
        ),
        asked(
            "weekend",
            lambda weather: weather.day >= 5,
            "You are given a day's weather. Answer yes if the day is a Saturday or a Sunday, and no otherwise.",
            "Say whether this is weekend weather: yes or no.",
            "Does the report belong to the weekend?",
            "Weekend or working day, as yes for the former and no for the latter",
            "Reply yes if the line begins with Sat or Sun, and no if it does not.",
            "Sun: 15 to 21 °C, rain 0 mm, wind W -> yes",
            "Return weather.day in ('Sat', 'Sun') as yes or no.",
            "The children have school from Monday to Friday. Were they free in this weather?",
        ),
        asked(
            "fahrenheit",
            lambda weather: f"{weather.high * 9 / 5 + 32:g}",
            "You are given a day's weather. Answer with the highest temperature in degrees Fahrenheit.",
            "Convert the day's maximum to Fahrenheit.",
            "How warm did it get at most, in °F?",
            "The upper temperature on the Fahrenheit scale, as a number",
            "Multiply the highest temperature by 1.8 and add 32.",
            "Tue: 1 to 15 °C, rain 0 mm, wind N -> 59",
            "Return weather.high * 9 / 5 + 32.",
            "An American asks how hot it got. Which number means something to her?",
        ),
        asked(
            "sentence",
            sentence,
            "A day's weather is given. Write: 'Monday reached 8 degrees and had 2 mm of rain.' or '… had no rain.'",
            "Sum up the day in one sentence: its full name, the highest temperature and the rain.",
            "What would a reporter say: which day reached how many degrees and had how much rain, or no rain?",
            "A short sentence with 'reached' and 'had', on the high and the rain, without the wind",
            "Put day, high and rain into '… reached … degrees and had … mm of rain.', or '… had no rain.'",
            "Sat: -1 to 7 °C, rain 0 mm, wind NE -> Saturday reached 7 degrees and had no rain.",
            "Return f'{day} reached {high} degrees and had {rain} mm of rain.', or 'no rain' for 0 mm.",
            "Write the day's line in a weather diary, as a full sentence on how warm and how wet it was.",
        ),
    ),
    split="validation",
)
