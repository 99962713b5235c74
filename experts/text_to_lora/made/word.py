"""One English noun, such as "garden"."""

from __future__ import annotations

import random
from itertools import pairwise

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import NOUNS, is_vowel, shifted, with_article


def draw(rng: random.Random) -> str:
    return rng.choice(NOUNS)


def vowels(word: str) -> list[str]:
    return [letter for letter in word if is_vowel(letter)]


def consonants(word: str) -> list[str]:
    return [letter for letter in word if not is_vowel(letter)]


def middle(word: str) -> str:
    """One letter, or two if the word's length is even."""
    half = (len(word) - 1) // 2
    return word[half : len(word) - half]


def pig_latin(word: str) -> str:
    start = next(place for place, letter in enumerate(word) if is_vowel(letter))
    return word[start:] + word[:start] + "ay" if start else word + "way"


def plural(noun: str) -> str:
    if noun.endswith("y") and not is_vowel(noun[-2]):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


WORD = Family(
    "word",
    draw,
    str,
    (
        asked(
            "upper",
            str.upper,
            "You are given a word. Answer with the same word in capital letters.",
            "Write the word in upper case.",
            "How does the word look when every letter of it is a capital?",
            "The word in block capitals",
            "Turn all the small letters of the word into big ones.",
            "stone -> STONE",
            "Return word.upper().",
            "Type the word as if caps lock were on.",
        ),
        asked(
            "backwards",
            lambda word: word[::-1],
            "Here is a word. Answer with its letters in the opposite order, from the last one to the first.",
            "Spell the word backwards, without spaces.",
            "What does the word read like from right to left?",
            "The reversed word",
            "Flip the word so that its end comes first and its beginning last.",
            "stone -> enots",
            "Return word[::-1].",
            "Write what the word would look like in a mirror, in ordinary letters.",
        ),
        asked(
            "first_letter",
            lambda word: word[0],
            "You will see a word. Answer with the letter that it begins with.",
            "Give the first letter of the word.",
            "Which letter does the word start with?",
            "The initial letter of a word",
            "Keep the opening letter of the word and drop all the others.",
            "stone -> s",
            "Return word[0].",
            "Under which letter would you look the word up in a dictionary?",
        ),
        asked(
            "last_letter",
            lambda word: word[-1],
            "The input is a word. Answer with the letter that it ends in.",
            "Give the last letter of the word.",
            "Which letter does the word finish with?",
            "The final letter of a word",
            "Drop everything but the letter at the very end of the word.",
            "plum -> m",
            "Return word[-1].",
            "Somebody spells the word aloud. Which letter do you hear at the end?",
        ),
        asked(
            "length",
            len,
            "You are given a word. Answer with the number of its letters.",
            "Count the letters of the word.",
            "How many letters does the word have?",
            "The length of a word in letters",
            "Say how long the word is, vowels and consonants together.",
            "stone -> 5",
            "Return len(word).",
            "The word goes into a crossword. How many squares will it fill?",
        ),
        asked(
            "vowels",
            vowels,
            "Here is a word. List its vowels in the order in which they occur, with spaces between them.",
            "Write down each a, e, i, o and u of the word as you come to it.",
            "Which vowels does the word hold, from left to right?",
            "The vowels of a word, one by one",
            "Leave out the consonants and list the letters that remain.",
            "sailor -> a i o",
            'Return " ".join(letter for letter in word if letter in "aeiou").',
            "Cross out every letter that is not a vowel, and read out what is still there.",
        ),
        asked(
            "vowel_count",
            lambda word: len(vowels(word)),
            "You will see a word. Answer with the number of vowels (a, e, i, o, u) in it.",
            "Count the vowels of the word.",
            "How many vowels are there in the word?",
            "The number of times that a, e, i, o or u occurs in a word",
            "Say how many letters of the word are vowels, counting each as often as it occurs.",
            "sailor -> 3; desk -> 1",
            'Return sum(letter in "aeiou" for letter in word).',
            "If you crossed out the consonants of the word, how many letters would be left?",
        ),
        asked(
            "consonant_count",
            lambda word: len(consonants(word)),
            "The input is a word. Answer with the number of consonants in it, where y counts as a consonant.",
            "Count the consonants of the word.",
            "How many letters of the word are not vowels?",
            "The number of consonants in a word",
            "Say how many letters other than a, e, i, o and u the word has.",
            "chalk -> 4; pie -> 1",
            'Return sum(letter not in "aeiou" for letter in word).',
            "If you crossed out the vowels of the word, how many letters would be left?",
        ),
        asked(
            "hyphens",
            lambda word: "-".join(word),
            "You are given a word. Spell it out with a hyphen between each letter and the next.",
            "Put hyphens between the letters of the word.",
            "How is the word spelled, letter by letter, with dashes in between?",
            "The word pulled apart by hyphens",
            "Separate all letters of the word with the sign -.",
            "stone -> s-t-o-n-e",
            'Return "-".join(word).',
            "Write the word as a slow speller would say it, with a dash for every pause.",
        ),
        asked(
            "without_vowels",
            lambda word: "".join(consonants(word)),
            "Here is a word. Write it without its vowels.",
            "Remove every a, e, i, o and u from the word.",
            "What is left of the word if its vowels are taken out?",
            "The word with all of its vowels deleted",
            "Shorten the word to its consonants, written together.",
            "stone -> stn",
            'Return re.sub("[aeiou]", "", word).',
            "Write the word the way people do who leave out the vowels to save space.",
        ),
        asked(
            "sorted_letters",
            lambda word: "".join(sorted(word)),
            "You will see a word. Answer with its letters in alphabetical order, written together.",
            "Sort the letters of the word from a to z.",
            "What do you get if you arrange the letters of the word as in the alphabet?",
            "The letters of a word, sorted",
            "Rearrange the word so that no letter stands before one that is earlier in the alphabet.",
            "stone -> enost",
            'Return "".join(sorted(word)).',
            "Lay out the word in letter tiles, then put the tiles in the order of the alphabet.",
        ),
        asked(
            "first_three",
            lambda word: word[:3],
            "The input is a word. Answer with its first three letters.",
            "Cut the word off after its third letter.",
            "Which three letters does the word start with?",
            "The three letters at the beginning of a word",
            "Abbreviate the word to three letters by leaving out all the later ones.",
            "stone -> sto",
            "Return word[:3].",
            "Shorten the word as one shortens Monday to Mon.",
        ),
        asked(
            "starts_with_vowel",
            lambda word: is_vowel(word[0]),
            "You are given a word. Answer yes if its first letter is a vowel, and no if it is a consonant.",
            "Say whether the word begins with a vowel: yes or no.",
            "Does the word start with a, e, i, o or u?",
            "Yes for a word with a vowel at its beginning, no for any other",
            "Check whether the opening letter of the word is a vowel.",
            "onion -> yes; stone -> no; river -> no",
            'Return "yes" if word[0] in "aeiou" else "no".',
            "Would you put an rather than a before the word? Say yes or no.",
        ),
        asked(
            "twice",
            lambda word: f"{word} {word}",
            "Here is a word. Write it two times, with a space in between.",
            "Repeat the word once.",
            "What do you get if you say the word twice?",
            "The word, and then the same word again",
            "Copy the word and put the copy after it.",
            "stone -> stone stone",
            'Return word + " " + word.',
            "Answer like an echo that adds itself to what was said.",
        ),
        asked(
            "pig_latin",
            pig_latin,
            "Translate the word into pig Latin. Move the consonants before its first vowel to the end and add ay; if "
            "it begins with a vowel, add way.",
            "Say the word in pig Latin.",
            "How would a child who speaks pig Latin say the word?",
            "The word in pig Latin",
            "Put the first consonants at the end, followed by ay; after a word that begins with a vowel, put way.",
            "stone -> onestay; apple -> appleway",
            "Return pig_latin(word).",
            "Use the secret language in which street becomes eetstray and onion becomes onionway.",
        ),
        asked(
            "shifted",
            lambda word: "".join(shifted(letter, 1) for letter in word),
            "You will see a word. Replace each letter by the next one of the alphabet, and z by a.",
            "Encrypt the word with a Caesar cipher that moves every letter one step on.",
            "What becomes of the word if a turns into b, b into c, and so on?",
            "The word in a secret code: instead of each letter, the one that follows it in the alphabet",
            "Shift all letters of the word by one place in the alphabet.",
            "stone -> tupof",
            'Return "".join(chr(ord(letter) + 1) for letter in word), with a after z.',
            "Hide the word by writing the alphabet's next letter for every letter of it.",
        ),
        asked(
            "middle",
            middle,
            "The input is a word. Answer with the letter in its middle, or with the middle two if its length is even.",
            "Give the middle letter of the word; if there are two, give both.",
            "Which letter or pair of letters stands in the centre of the word?",
            "The middle of a word: one letter or two",
            "Take a letter off both ends again and again, until only one or two are left.",
            "stone -> o; plum -> lu",
            "Return word[(len(word) - 1) // 2 : len(word) // 2 + 1].",
            "Fold the word in half. What is written at the crease?",
        ),
        asked(
            "doubled_letters",
            lambda word: any(one == other for one, other in pairwise(word)),
            "You are given a word. Answer yes if the same letter stands in it twice in a row, and no otherwise.",
            "Say whether the word has a doubled letter: yes or no.",
            "Are there two equal letters side by side in the word?",
            "Yes for a word with a double letter, no for one without",
            "Check whether any letter of the word is followed by itself.",
            "hammer -> yes; stone -> no; apple -> yes; onion -> no",
            "Return any(a == b for a, b in pairwise(word)), as yes or no.",
            "Somebody spells the word over the phone. Will they ever have to say double something?",
        ),
        asked(
            "plural",
            plural,
            "Here is a noun. Answer with its plural.",
            "Write the word as it is when there are several of the thing.",
            "What is the plural of the word?",
            "The plural form of a noun, rightly spelled",
            "Add s, es or ies to the noun as English spelling wants it.",
            "stone -> stones; daisy -> daisies",
            "Return pluralize(word).",
            "There is not one but two of them. What do you call them?",
        ),
        asked(
            "with_article",
            with_article,
            "You will see a noun. Write it with the indefinite article before it, a or an.",
            "Put a or an in front of the word.",
            "Does the noun take a or an? Write the article and the noun.",
            "The noun together with its indefinite article",
            "Precede the word with an if it begins with a vowel, and with a if not.",
            "stone -> a stone",
            'Return ("an " if word[0] in "aeiou" else "a ") + word.',
            "Finish the sentence This is ..., giving only the words that are missing.",
        ),
    ),
)
