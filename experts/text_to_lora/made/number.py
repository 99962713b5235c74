"""One whole number from 1 to 3999, such as "37"."""

from __future__ import annotations

import random

from experts.text_to_lora.made.family import Family, asked

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")),
    *((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


def draw(rng: random.Random) -> int:
    """Roman numerals end at 3999."""
    return rng.randrange(1, rng.choice((100, 1000, 4000)))


def in_words(number: int) -> str:
    """In English, without "and".

    >>> in_words(1042)
    'one thousand forty-two'
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return f"{TENS[tens]}-{ONES[ones]}" if ones else TENS[tens]
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    return f"{in_words(count)} {name} {in_words(rest)}" if rest else f"{in_words(count)} {name}"


def roman(number: int) -> str:
    numeral = ""
    for value, letters in ROMAN:
        count, number = divmod(number, value)
        numeral += count * letters
    return numeral


def ordinal(number: int) -> str:
    is_teen = number // 10 % 10 == 1  # 11th, 12th and 13th, not 11st
    ending = "th" if is_teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def prime_factors(number: int) -> list[int]:
    for divisor in range(2, number + 1):
        if number % divisor == 0:
            return [divisor, *prime_factors(number // divisor)]
    return []


NUMBER = Family(
    "number",
    draw,
    str,
    (
        asked(
            "double",
            lambda number: 2 * number,
            "You are given a whole number. Answer with twice that number.",
            "Double the number.",
            "What is the number times two?",
            "Two times the given number",
            "Add the number to itself.",
            "43 -> 86",
            "Return 2 * n.",
            "One ticket costs this much. Say what a pair of tickets costs.",
        ),
        asked(
            "square",
            lambda number: number**2,
            "A whole number is given. Answer with its square.",
            "Multiply the number by itself.",
            "What is the number to the power of two?",
            "The second power of the given number",
            "Raise the number to the exponent 2.",
            "12 -> 144",
            "Return n ** 2.",
            "A square has sides of this length. Give its area.",
        ),
        asked(
            "half",
            lambda number: f"{number / 2:g}",
            "Take the whole number that follows. Answer with half of it, ending in .5 if it is odd.",
            "Halve the number.",
            "What is the number divided by two?",
            "One half of the given number",
            "Split the number into two equal parts and give one of them.",
            "45 -> 22.5",
            "Return n / 2.",
            "Everything is fifty percent off. Say what this price becomes.",
        ),
        asked(
            "parity",
            lambda number: "odd" if number % 2 else "even",
            "Look at the whole number. Answer with the word even or the word odd.",
            "Say whether the number is even or odd.",
            "Is it an even number or an odd one?",
            "The parity of the number, as one word",
            "Write even if two divides the number, and odd if not.",
            "218 -> even",
            'Return "odd" if n % 2 else "even".',
            "This many people want to dance in pairs. Write odd if somebody is left over, or else even.",
        ),
        asked(
            "is_prime",
            lambda number: prime_factors(number) == [number],
            "Test the whole number. Answer yes if it is a prime number, and no if not.",
            "Say whether the number is prime.",
            "Is this a prime?",
            "Yes or no: the number has exactly two divisors",
            "Decide whether only one and the number itself divide it, where one does not count as prime.",
            "87 -> no",
            "Return yes if isprime(n), else no.",
            "This many tiles form a rectangle. Is there more than one tile, and is a single row the only way?",
        ),
        asked(
            "roman",
            roman,
            "The number is in ordinary digits. Write it in Roman numerals.",
            "Convert the number to a Roman numeral.",
            "How would the ancient Romans have written it?",
            "The number in the letters I, V, X, L, C, D and M",
            "Rewrite the number the way it would be carved as a year on an old building.",
            "49 -> XLIX",
            "Return to_roman(n).",
            "A clock face with letters instead of digits uses this notation. Write the number in it.",
        ),
        asked(
            "words",
            in_words,
            'The number is written in digits. Spell it out in English words, without "and".',
            "Write the number in words.",
            "How is the number said in English?",
            "The English name of the number",
            "Spell the number out instead of using digits.",
            "342 -> three hundred forty-two",
            'Return num2words(n) in English, in small letters and without "and".',
            "You are filling in a cheque. Write this amount in letters.",
        ),
        asked(
            "binary",
            lambda number: f"{number:b}",
            "A number in base ten is given. Write it in base two, without a prefix.",
            "Convert the number to binary.",
            "What is the number in the binary system?",
            "The number in zeros and ones",
            "Divide by two again and again down to zero, and write the remainders, the last one first.",
            "13 -> 1101",
            'Return f"{n:b}".',
            "A computer keeps this number as a row of bits. Write the bits, starting at the first one that is set.",
        ),
        asked(
            "hexadecimal",
            lambda number: f"{number:x}",
            "A decimal number is given. Write it in base sixteen, in small letters and without a prefix.",
            "Convert the number to hexadecimal.",
            "What is the number in the hexadecimal system?",
            "The number in the digits 0 to 9 and a to f",
            "Rewrite the number in hex.",
            "254 -> fe",
            'Return f"{n:x}".',
            "Programmers write colours and addresses with sixteen different digits. Write the number their way.",
        ),
        asked(
            "next",
            lambda number: number + 1,
            "Here is a whole number. Answer with the one that comes right after it.",
            "Add one to the number.",
            "Which number follows when you count on?",
            "The successor of the number",
            "Go one step up from the number.",
            "640 -> 641",
            "Return n + 1.",
            "The counter at the gate shows this, and one more visitor comes in. What does it show now?",
        ),
        asked(
            "previous",
            lambda number: number - 1,
            "Here is a whole number. Answer with the one that comes right before it.",
            "Subtract one from the number.",
            "Which number is reached by counting down once?",
            "The predecessor of the number",
            "Go one step down from the number.",
            "500 -> 499",
            "Return n - 1.",
            "There were this many biscuits and one was eaten. How many are left?",
        ),
        asked(
            "digit_sum",
            lambda number: sum(map(int, str(number))),
            "Take the digits of the number one by one. Answer with their sum.",
            "Add up the digits.",
            "What do the digits come to together?",
            "The sum of the digits",
            "Put a plus sign between every two digits and work out the result.",
            "582 -> 15",
            "Return sum(map(int, str(n))).",
            "Treat every digit as a number of its own and give their total.",
        ),
        asked(
            "backwards",
            lambda number: str(number)[::-1],
            "The number consists of digits. Write them in reverse order, keeping zeros.",
            "Reverse the digits.",
            "What does the number look like when it is read from right to left?",
            "The digits of the number, last one first",
            "Write the number backwards, even if it then begins with a zero.",
            "4820 -> 0284",
            "Return str(n)[::-1].",
            "Hold the number up to a mirror and copy the digits in the order that you see.",
        ),
        asked(
            "ordinal",
            ordinal,
            "A counting number is given. Write its ordinal form in digits, ending in st, nd, rd or th.",
            "Turn the number into an ordinal.",
            "How is the number written when it says a place in a race?",
            "The ordinal, in digits with its two-letter ending",
            "Append the letters that make the number a rank.",
            "23 -> 23rd",
            "Return ordinal(n), with its suffix.",
            "Somebody has had this many birthdays. Write in digits which birthday the latest one was.",
        ),
        asked(
            "nearest_ten",
            lambda number: (number + 5) // 10 * 10,
            "Round the whole number that is given. Answer with the nearest multiple of ten, where a final 5 goes up.",
            "Round the number to the nearest ten.",
            "Which number ending in zero is closest, and the higher one if two are?",
            "The number rounded to tens",
            "Make the last digit a zero: go down from 4 or less and up from 5 or more.",
            "386 -> 390",
            "Return (n + 5) // 10 * 10.",
            "The till has no coins below ten cents. Say what this amount of cents is rounded to.",
        ),
        asked(
            "by_three",
            lambda number: number % 3 == 0,
            "Divide the whole number by three. Answer yes if nothing is left over, and no if something is.",
            "Say whether the number is divisible by three.",
            "Is it a multiple of 3?",
            "Yes or no: three goes into the number exactly",
            "Decide whether the number is in the three times table, however far it is continued.",
            "471 -> yes",
            "Return yes if n % 3 == 0, else no.",
            "Three friends want to share this many sweets evenly. Can they do it?",
        ),
        asked(
            "prime_factors",
            prime_factors,
            "Break the number into prime factors. Write them from small to large with spaces, or none for 1.",
            "Factorise the number.",
            "Which primes give the number when multiplied together?",
            "The prime factorisation, with repeated primes written repeatedly",
            "Divide by the smallest prime that fits, again and again, and list the primes used.",
            "84 -> 2 2 3 7",
            "Return the sorted list factor(n), with multiplicity.",
            "Take the number apart into building blocks that multiply and cannot be split further.",
        ),
        asked(
            "digit_count",
            lambda number: len(str(number)),
            "Look at how the number is written. Answer with how many digits it has.",
            "Count the digits.",
            "How many digits long is the number?",
            "The number of digits",
            "Say how many places the number takes up, from 1 to 4.",
            "608 -> 3",
            "Return len(str(n)).",
            "Each digit is a separate sticker on a door. How many stickers does this door need?",
        ),
        asked(
            "to_hundred",
            lambda number: -number % 100,
            "A whole number is given. Answer with what must be added to reach a multiple of 100, or 0 if it is one.",
            "Say how much is needed to reach the next full hundred, with 0 for a full hundred.",
            "How far is it up to the nearest hundred that is not below the number?",
            "The gap between the number and the hundred above it, or zero at a full hundred",
            "Fill the number up to a full hundred and give what you added.",
            "730 -> 70",
            "Return -n % 100.",
            "You pay this amount with hundred-dollar notes, as few as will do. How much change do you get?",
        ),
        asked(
            "last_digit",
            lambda number: number % 10,
            "The number may have several digits. Answer with the last of them.",
            "Give the units digit.",
            "Which digit stands furthest to the right?",
            "The final digit of the number",
            "Cross out all but the rightmost digit.",
            "3157 -> 7",
            "Return n % 10.",
            "Divide by ten and say only the remainder.",
        ),
    ),
)
