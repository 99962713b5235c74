"""Three to seven different letters, such as "k a f d"."""

from __future__ import annotations

import random
from string import ascii_lowercase

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import is_vowel, shifted


def draw(rng: random.Random) -> list[str]:
    return rng.sample(ascii_lowercase, rng.randint(3, 7))


def position(letter: str) -> int:
    """In the alphabet, from 1."""
    return ascii_lowercase.index(letter) + 1


def mirrored(letter: str) -> str:
    return ascii_lowercase[-position(letter)]


def ends_swapped(letters: list[str]) -> list[str]:
    return [letters[-1], *letters[1:-1], letters[0]]


LETTERS = Family(
    "letters",
    draw,
    " ".join,
    (
        asked(
            "next",
            lambda letters: [shifted(letter, 1) for letter in letters],
            "You are given some letters. Replace each by the one that follows it in the alphabet, and z by a.",
            "Move every letter one step on in the alphabet.",
            "Which letter comes after each of these? After z comes a.",
            "The alphabetical successors of the letters",
            "Write b for a, c for b, d for c, and so on.",
            "k a f d -> l b g e",
            "Return [chr(ord(letter) + 1) for letter in letters], where a follows z.",
            "Recite the alphabet from each letter, and write down the letter that you say next.",
        ),
        asked(
            "previous",
            lambda letters: [shifted(letter, -1) for letter in letters],
            "Here are some letters. Replace each by the one just before it in the alphabet, and a by z.",
            "Move every letter one step back in the alphabet.",
            "Which letter comes before each of these? Before a comes z.",
            "The alphabetical predecessors of the letters",
            "Write a for b, b for c, c for d, and so on.",
            "k b f d -> j a e c",
            "Return [chr(ord(letter) - 1) for letter in letters], where z precedes a.",
            "Somebody wrote the alphabet's next letter instead of each letter meant. Undo it.",
        ),
        asked(
            "alphabetical",
            sorted,
            "You will see some letters. Write them in alphabetical order.",
            "Sort the letters from a to z.",
            "How are these letters ordered in the alphabet?",
            "The same letters, arranged as in the alphabet",
            "Rearrange the letters so that each comes later in the alphabet than the one before it.",
            "k a f d -> a d f k",
            "Return sorted(letters).",
            "The letters are labels of drawers. Put the drawers in their usual order.",
        ),
        asked(
            "capitals",
            lambda letters: [letter.upper() for letter in letters],
            "The input consists of some small letters. Write each of them as a capital, with the spaces kept.",
            "Turn the letters into capitals.",
            "How do the letters look in upper case?",
            "The letters as capitals",
            "Replace every lower-case letter by the upper-case one.",
            "k a f d -> K A F D",
            "Return [letter.upper() for letter in letters].",
            "Type the letters again while holding down the shift key.",
        ),
        asked(
            "positions",
            lambda letters: list(map(position, letters)),
            "You are given some letters. Answer with the place of each in the alphabet, counting a as 1 and z as 26.",
            "Replace every letter by its number in the alphabet.",
            "What are the positions of the letters in the alphabet?",
            "The alphabet's numbers for the letters",
            "Write 1 for a, 2 for b, 3 for c, up to 26 for z.",
            "k a f d -> 11 1 6 4",
            'Return [ord(letter) - ord("a") + 1 for letter in letters].',
            "Encode the letters as numbers, the way children do it with a as one and b as two.",
        ),
        asked(
            "vowels_only",
            lambda letters: [letter for letter in letters if is_vowel(letter)],
            "Here are some letters. Repeat those that are vowels, in the order given, or answer none.",
            "Keep only a, e, i, o and u; if none of them is there, say none.",
            "Which of the letters are vowels?",
            "The vowels among the letters, or none",
            "Leave out all the consonants.",
            "k a f u -> a u; k d f -> none",
            'Return [letter for letter in letters if letter in "aeiou"], or none.',
            "Choose the letters that you could sing for a long time.",
        ),
        asked(
            "consonants_only",
            lambda letters: [letter for letter in letters if not is_vowel(letter)],
            "You will see some letters. Repeat those that are consonants, in the order given, or answer none.",
            "Remove the vowels from the letters; if nothing is left, say none.",
            "Which of the letters are not vowels?",
            "The consonants among the letters, y included, or none",
            "Leave out every a, e, i, o and u.",
            "k a f d -> k f d",
            'Return [letter for letter in letters if letter not in "aeiou"], or none.',
            "Which letters remain for you in a game where another player takes all the vowels?",
        ),
        asked(
            "vowel_count",
            lambda letters: sum(map(is_vowel, letters)),
            "The input consists of some letters. Answer with the number of vowels among them, which may be 0.",
            "Count how often a vowel occurs among the letters.",
            "How many of the letters are vowels?",
            "The number of vowels in a row of letters",
            "Count every a, e, i, o and u, and nothing else.",
            "k a f d -> 1; i u g a -> 3",
            'Return sum(letter in "aeiou" for letter in letters).',
            "A quiz pays one point for each vowel shown. How many points is the row worth?",
        ),
        asked(
            "count",
            len,
            "You are given some letters. Answer with the number of letters, vowels or not.",
            "Count all the letters.",
            "How many letters are shown?",
            "The number of letters in the row",
            "Say how long the row of letters is.",
            "k a f d -> 4; g u e -> 3",
            "Return len(letters).",
            "A shop sells letters for a front door one by one. How many does this customer want?",
        ),
        asked(
            "first_and_last",
            lambda letters: [letters[0], letters[-1]],
            "Here are some letters. Answer with the first and the last of them, with a space between.",
            "Keep the letters at the two ends of the row.",
            "Which letters does the row begin and end with?",
            "The outermost two letters",
            "Drop everything between the first letter and the last.",
            "k a f d -> k d",
            "Return [letters[0], letters[-1]].",
            "The letters hold hands in a row. Which two have a hand free, from left to right?",
        ),
        asked(
            "joined",
            "".join,
            "You will see some letters with spaces between them. Write them as one word, in the order given.",
            "Remove the spaces between the letters.",
            "What word do the letters form if they are pushed together?",
            "The letters without gaps",
            "Join the letters, with nothing in between.",
            "k a f d -> kafd",
            'Return "".join(letters).',
            "Somebody spelled out a strange word letter by letter. Write the word.",
        ),
        asked(
            "reversed",
            lambda letters: letters[::-1],
            "The input consists of some letters. Write them in the opposite order, from the last to the first.",
            "Reverse the row of letters.",
            "What is the row of letters when it is read from right to left?",
            "The letters back to front",
            "Start with the last letter and go on to the first.",
            "k a f d -> d f a k",
            "Return letters[::-1].",
            "The letters are a train of wagons, and the train now drives the other way. Name them from its new front.",
        ),
        asked(
            "earliest",
            min,
            "You are given some letters. Answer with the one that comes earliest in the alphabet.",
            "Find the letter nearest to the beginning of the alphabet.",
            "Which of the letters has the lowest place in the alphabet?",
            "The letter that a sorted row would begin with",
            "Pick the letter that is before all the others by the alphabet.",
            "k c f d -> c",
            "Return min(letters).",
            "You recite the alphabet from a. Which letter of the row do you reach before the others?",
        ),
        asked(
            "latest",
            max,
            "Here are some letters. Answer with the one that comes latest in the alphabet.",
            "Find the letter nearest to the end of the alphabet.",
            "Which of the letters has the highest place in the alphabet?",
            "The letter that a sorted row would end with",
            "Pick the letter that is after all the others by the alphabet.",
            "c k f d -> k",
            "Return max(letters).",
            "You recite the alphabet from a. Which letter of the row do you reach when you have said all its others?",
        ),
        asked(
            "doubled",
            lambda letters: [letter * 2 for letter in letters],
            "You will see some letters. Write each of them twice, and put spaces only between different letters.",
            "Double every letter.",
            "What does the row look like if each letter becomes a pair?",
            "Each letter as a pair of itself",
            "Put beside every letter a second one like it.",
            "k a f d -> kk aa ff dd",
            "Return [letter * 2 for letter in letters].",
            "Type the letters on a keyboard whose keys stick, so that each comes out two times.",
        ),
        asked(
            "ends_swapped",
            ends_swapped,
            "The input consists of some letters. Let the first and the last change places, and move no others.",
            "Swap the letters at the two ends of the row.",
            "What is the row if its first and its last letter are exchanged?",
            "All the letters, the outer two having changed places",
            "Put the last letter first and the first one last, without moving those between them.",
            "k a f d -> d a f k",
            "letters[0], letters[-1] = letters[-1], letters[0]; return letters.",
            "The letters sit on a bench. Those at its left and right end swap seats: who sits where?",
        ),
        asked(
            "every_other",
            lambda letters: letters[::2],
            "You are given some letters. Write down the first, the third, the fifth and so on.",
            "Leave out every second letter.",
            "Which letters stand at the odd places of the row?",
            "Every other letter, beginning with the first",
            "Keep one letter, skip one, keep one, skip one, to the end.",
            "k a f d g -> k f g",
            "Return letters[::2].",
            "Two players take the letters in turn from the left. Which ones does the player who starts get?",
        ),
        asked(
            "mirrored",
            lambda letters: list(map(mirrored, letters)),
            "Here are some letters. Replace each by its counterpart from the other end of the alphabet: a by z, "
            "b by y, c by x, and so on.",
            "Encode the letters with the Atbash cipher.",
            "What stands in place of each letter if the alphabet is turned round, z for a and a for z?",
            "For each letter, the one as far from z as it is from a",
            "Swap a with z, b with y, c with x and so on through the alphabet.",
            "k a f d -> p z u w",
            'Return [chr(ord("a") + ord("z") - ord(letter)) for letter in letters].',
            "Write the alphabet once forwards and once backwards below it, and read off the lower letters.",
        ),
    ),
    split="validation",
)
