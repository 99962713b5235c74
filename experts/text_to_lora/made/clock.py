"""A time of day on the 24-hour clock, such as "14:35"."""

from __future__ import annotations

import random

from experts.text_to_lora.made.family import Family, asked

DAY = 24 * 60
"""Minutes. A time is the number of minutes since midnight."""
UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOURS = ("twelve", *UNITS, "ten", "eleven")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "quarter", "sixteen", "seventeen", "eighteen", "nineteen")
MINUTES = ("", *UNITS, *TEENS, "twenty", *(f"twenty-{unit}" for unit in UNITS), "half")
"""As they are called before "past" and "to"."""


def draw(rng: random.Random) -> int:
    return rng.randrange(DAY)


def show(time: int) -> str:
    """A time as it is written; those of other days are brought into this one.

    >>> show(14 * 60 + 35), show(-10), show(24 * 60)
    ('14:35', '23:50', '00:00')
    """
    hour, minute = divmod(time % DAY, 60)
    return f"{hour:02d}:{minute:02d}"


def half_of_day(time: int) -> str:
    return "am" if time < DAY // 2 else "pm"


def twelve_hour(time: int) -> str:
    hour, minute = divmod(time, 60)
    return f"{hour % 12 or 12}:{minute:02d} {half_of_day(time)}"


def part_of_day(time: int) -> str:
    hour = time // 60
    if 6 <= hour < 12:
        return "morning"
    if 12 <= hour < 18:
        return "afternoon"
    if 18 <= hour < 22:
        return "evening"
    return "night"


def in_words(time: int) -> str:
    hour, minute = divmod(time, 60)
    if minute == 0:
        return f"{HOURS[hour % 12]} o'clock"
    if minute <= 30:
        return f"{MINUTES[minute]} past {HOURS[hour % 12]}"
    return f"{MINUTES[60 - minute]} to {HOURS[(hour + 1) % 12]}"


CLOCK = Family(
    "clock",
    draw,
    show,
    (
        asked(
            "twelve_hour",
            twelve_hour,
            "You are given a time on the 24-hour clock. Write it on the 12-hour clock, followed by am or pm.",
            "Convert the time to twelve hours with am or pm.",
            "How would an American write this time, with am or pm after it?",
            "The full time in 12-hour form; midnight is 12:00 am and noon 12:00 pm",
            "Bring the hour into the range 1 to 12, keep the minutes, and add am or pm.",
            "19:08 -> 7:08 pm",
            "Return f'{hour % 12 or 12}:{minute:02d} {am_or_pm}'.",
            "My alarm clock only knows twelve hours and a lamp for am or pm. What does it show?",
        ),
        asked(
            "since_midnight",
            lambda time: time,
            "You are given a time of day. Answer with the number of minutes since midnight.",
            "Count the minutes that have passed since the day began.",
            "How many minutes old is the day?",
            "The time as minutes since 00:00",
            "Multiply the hours by sixty and add the minutes.",
            "02:15 -> 135",
            "Return 60 * hour + minute.",
            "A stopwatch was started at the stroke of midnight. How many whole minutes does it show?",
        ),
        asked(
            "half_hour_later",
            lambda time: show(time + 30),
            "You are given a time of day. Answer with the time thirty minutes later, in the same form.",
            "Add half an hour to the time.",
            "What time will it be in thirty minutes?",
            "The time half an hour on; after 23:59 comes 00:00",
            "Put the clock forward by 30 minutes.",
            "09:42 -> 10:12",
            "Return time + timedelta(minutes=30).",
            "The bus leaves half an hour after this. When does it leave?",
        ),
        asked(
            "hour_earlier",
            lambda time: show(time - 60),
            "You are given a time of day. Answer with the time one hour earlier, in the same form.",
            "Take an hour off the time.",
            "What time was it sixty minutes ago?",
            "The time an hour before; an hour before 00:20 it was 23:20",
            "Put the clock back by one hour.",
            "16:09 -> 15:09",
            "Return time - timedelta(hours=1).",
            "In Lisbon it is always an hour less than in Madrid, where it is this time. What time is it in Lisbon?",
        ),
        asked(
            "hour",
            lambda time: time // 60,
            "You are given a time of day. Answer with its hour as a number from 0 to 23.",
            "Keep only the hour of the time, without a leading zero.",
            "Which hour does the clock show before the colon, as a plain number?",
            "The hours alone, such as 8 or 21",
            "Drop the colon and the minutes, and a zero in front.",
            "05:57 -> 5",
            "Return time.hour.",
            "How many full hours of the day have passed?",
        ),
        asked(
            "minutes",
            lambda time: time % 60,
            "You are given a time of day. Answer with its minutes as a number from 0 to 59.",
            "Keep only the minutes of the time, without a leading zero.",
            "Which number stands after the colon, as a plain number?",
            "The minutes past the hour alone, such as 4 or 38",
            "Drop the hour and the colon, and a zero in front.",
            "11:03 -> 3",
            "Return time.minute.",
            "How many minutes ago did the church bell strike the hour?",
        ),
        asked(
            "part_of_day",
            part_of_day,
            "A time is given. Say morning from 6:00, afternoon from 12:00, evening from 18:00 or night from 22:00.",
            "Name the part of the day: morning, afternoon, evening or night.",
            "Is it morning, afternoon (from 12:00), evening (from 18:00) or night (22:00 to 6:00)?",
            "The part of the day in one word; night lasts from 22:00 until 6:00",
            "Sort the time into one of the four parts of a day.",
            "20:31 -> evening",
            "Return part_of_day(time), one of morning, afternoon, evening and night.",
            "Which word would follow 'Good' in a greeting at this time, be it even 'night'?",
        ),
        asked(
            "to_full_hour",
            lambda time: 60 - time % 60,
            "You are given a time of day. Answer with the minutes until the next full hour; on the hour they are 60.",
            "Count the minutes that are missing to the next full hour.",
            "How many minutes must pass before the next hour begins?",
            "The minutes still to go in this hour, 60 at its start",
            "Subtract the minutes of the time from sixty.",
            "18:48 -> 12",
            "Return 60 - time.minute.",
            "The bells ring every hour on the hour. How many minutes must I wait for them to ring again?",
        ),
        asked(
            "nearest_quarter",
            lambda time: show((time + 7) // 15 * 15),
            "You are given a time of day. Round it to the nearest quarter of an hour, in the same form.",
            "Round the time to a multiple of fifteen minutes, up or down.",
            "Which quarter-hour is closest to this time?",
            "The time to the nearest 15 minutes; 23:55 becomes 00:00",
            "Set the minutes to 00, 15, 30 or 45, whichever lies nearest.",
            "08:40 -> 08:45",
            "Return round_to(time, minutes=15).",
            "A time sheet takes quarters of an hour only. What do I enter for this time?",
        ),
        asked(
            "am_or_pm",
            half_of_day,
            "You are given a time on the 24-hour clock. Answer am or pm, and nothing else.",
            "Say only am or pm.",
            "Does the time lie in the am or in the pm half?",
            "Which letters go with this time on a 12-hour clock",
            "Reply am for 00:00 to 11:59, and pm from 12:00 on.",
            "13:26 -> pm",
            "Return 'am' if time.hour < 12 else 'pm'.",
            "Light only the right one of the two lamps on a digital clock, am or pm.",
        ),
        asked(
            "in_words",
            in_words,
            "You are given a time of day. Write it in words as people say it, with past, to or o'clock.",
            "Say the time in English words, such as ten past four.",
            "What would a speaking clock with hands say, without am or pm?",
            "The time in words: up to half past the minutes follow the hour, then they lead to the next",
            "Spell the time with quarter, half, past and to; a full hour takes o'clock.",
            "14:35 -> twenty-five to three",
            "Return spoken_time(hour, minute), in words without digits.",
            "A stranger asks you the time in the street. Reply in words, like quarter to six.",
        ),
        asked(
            "with_seconds",
            lambda time: f"{show(time)}:00",
            "You are given a time of day in hours and minutes. Write it with the seconds, which are 00.",
            "Add zero seconds to the time.",
            "How is the same time written as HH:MM:SS?",
            "The time with :00 behind it",
            "Append a colon and two noughts.",
            "07:19 -> 07:19:00",
            "Return time.strftime('%H:%M:%S').",
            "The database wants seconds as well; the minute has only just begun.",
        ),
        asked(
            "shop_open",
            lambda time: "open" if 9 * 60 <= time < 18 * 60 else "closed",
            "A shop opens at 9:00 and closes at 18:00. Answer open or closed for the time that you are given.",
            "Say open for times from 9:00 until just before 18:00, and closed for all others.",
            "Is a shop open or closed at this time, if it trades from nine in the morning to six in the evening?",
            "The state of a shop with hours from 9 to 18: open or closed",
            "Check the time against a door sign that says 9:00 to 18:00, and reply open or closed.",
            "21:44 -> closed",
            "Return 'open' if 9 <= time.hour < 18 else 'closed'.",
            "Can I still buy bread now? The baker serves from nine until six in the evening: open or closed?",
        ),
        asked(
            "twelve_hours_later",
            lambda time: show(time + DAY // 2),
            "You are given a time of day. Answer with the time twelve hours later, on the 24-hour clock.",
            "Add twelve hours to the time.",
            "What will a 24-hour clock show half a day later?",
            "The time on the other half of the day, 12 hours off, as HH:MM",
            "Shift the hour by twelve, wrap round at 24, and keep the minutes.",
            "17:22 -> 05:22",
            "Return time + timedelta(hours=12).",
            "I take a pill every twelve hours and took one now. When is the next?",
        ),
        asked(
            "no_colon",
            lambda time: show(time).replace(":", ""),
            "You are given a time of day. Write it as four digits without the colon.",
            "Delete the colon from the time.",
            "How do soldiers write this time, in four digits?",
            "Hours and minutes run together in military style",
            "Close up the hours and the minutes, noughts included.",
            "06:50 -> 0650",
            "Return time_text.replace(':', '').",
            "The keypad of an oven has no colon. Type the time in.",
        ),
        asked(
            "left_today",
            lambda time: DAY - time,
            "You are given a time of day. Answer with the minutes that are left until the coming midnight.",
            "Count the minutes until the day ends.",
            "How many minutes remain of this day, which has 1440?",
            "The minutes from now to 24:00",
            "Subtract the minutes since midnight from 1440.",
            "22:10 -> 110",
            "Return 24 * 60 - (60 * hour + minute).",
            "The offer ends tonight at twelve. How many minutes have I got?",
        ),
        asked(
            "as_duration",
            lambda time: f"{time // 60} h {time % 60} min",
            "You are given a time of day. Write its hours and minutes with units, as in 7 h 5 min.",
            "Write the time with h and min in place of the colon.",
            "How long has the day lasted so far, in h and min?",
            "Hours and minutes as plain numbers, each with its unit, h or min",
            "Drop leading zeros, and put h after the hours and min after the minutes.",
            "03:07 -> 3 h 7 min",
            "Return f'{hour} h {minute} min'.",
            "A machine started at midnight and ran until now. State its running time with units.",
        ),
        asked(
            "hour_begun",
            lambda time: show(time // 60 * 60),
            "You are given a time of day. Answer with the full hour at or before it, in the same form.",
            "Round the time down to the full hour.",
            "At what time did the present hour begin?",
            "The time with its minutes set to 00",
            "Replace the minutes by two noughts and keep the hour.",
            "12:58 -> 12:00",
            "Return time.replace(minute=0).",
            "Calls are filed under the hour in which they came, as HH:00. File this one.",
        ),
        asked(
            "half_of_hour",
            lambda time: "first" if time % 60 < 30 else "second",
            "You are given a time of day. Answer first or second for the half of the hour in which it lies.",
            "Say whether the minutes are below 30, first, or not, second.",
            "Is it the first or the second half of the hour?",
            "The half of the hour, first until minute 29 and second from minute 30",
            "Look at the minute hand: reply first on the right side of the dial, second from the six on.",
            "15:39 -> second",
            "Return 'first' if time.minute < 30 else 'second'.",
            "Teams swap ends thirty minutes into each hour. Which half are they playing now, first or second?",
        ),
        asked(
            "digit_sum",
            lambda time: sum(int(digit) for digit in show(time) if digit != ":"),
            "You are given a time of day. Add up its four digits and answer with the sum.",
            "Sum the digits that the clock shows.",
            "What do the four digits of the time come to together?",
            "The digit sum of a time",
            "Treat each digit of the time as a number of its own, and add them.",
            "20:46 -> 12",
            "Return sum(map(int, time_text.replace(':', ''))).",
            "A bored child adds the figures on a digital clock one by one. What is the result?",
        ),
    ),
    split="test",
)
