"""A sentence about what somebody did, such as "The old baker sold bread in Lisbon on Monday."."""

from __future__ import annotations

import random
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import words


class Deed(NamedTuple):
    base: str
    past: str
    participle: str
    object: str


class Event(NamedTuple):
    determiner: str
    adjective: str
    person: str
    deed: Deed
    place: str
    time: str

    @property
    def who(self) -> str:
        """In the middle of a sentence."""
        return f"{self.determiner.lower()} {self.adjective} {self.person}"

    @property
    def rest(self) -> str:
        """What follows the verb."""
        return f"{self.deed.object} {self.place} {self.time}"


DETERMINERS = ("The", "Our", "My", "That", "Her", "His")
ADJECTIVES = words(
    """
    old young tall kind tired happy busy brave clever quiet shy proud careful lonely famous hungry angry merry poor rich
    lazy patient
    """
)
PEOPLE = words(
    """
    baker nurse sailor farmer teacher pilot dancer painter doctor waiter king queen singer judge cook tailor boy girl
    gardener clown guard student uncle cousin
    """
)
DEEDS = tuple(
    Deed(*forms.split("/"))
    for forms in (
        "sell/sold/sold/bread",
        "sell/sold/sold/a lamp",
        "draw/drew/drawn/a map",
        "draw/drew/drawn/the horse",
        "paint/painted/painted/a fence",
        "paint/painted/painted/the door",
        "write/wrote/written/a letter",
        "write/wrote/written/a poem",
        "sing/sang/sung/a song",
        "find/found/found/a coin",
        "find/found/found/the key",
        "lose/lost/lost/a glove",
        "lose/lost/lost/the ticket",
        "bake/baked/baked/a cake",
        "bake/baked/baked/bread",
        "buy/bought/bought/cheese",
        "buy/bought/bought/a hat",
        "break/broke/broken/a cup",
        "break/broke/broken/the window",
        "hide/hid/hidden/the jewel",
        "hide/hid/hidden/a gift",
        "clean/cleaned/cleaned/the floor",
        "clean/cleaned/cleaned/a mirror",
        "build/built/built/a boat",
        "build/built/built/the wall",
        "carry/carried/carried/a ladder",
        "eat/ate/eaten/soup",
        "eat/ate/eaten/an apple",
        "catch/caught/caught/a trout",
        "repair/repaired/repaired/the clock",
        "steal/stole/stolen/a bicycle",
        "see/saw/seen/the parade",
        "open/opened/opened/the gate",
        "drink/drank/drunk/tea",
        "wash/washed/washed/a shirt",
        "play/played/played/chess",
        "forget/forgot/forgotten/the password",
    )
)
PLACES = (
    *("in Lisbon", "in Oslo", "in Paris", "in Rome", "in Cairo", "in Dublin", "in Vienna", "in Lima", "in Tokyo"),
    *("at the market", "at school", "at the station", "at home", "by the river", "near the bridge", "on the beach"),
    *("behind the barn", "in the garden", "in a tent"),
)
TIMES = (
    *("on Monday", "on Tuesday", "on Friday", "on Sunday", "in April", "in May", "in August", "in October"),
    *("at noon", "at midnight", "before dawn", "after lunch", "in winter", "in spring", "at sunset"),
)


def draw(rng: random.Random) -> Event:
    return Event(
        rng.choice(DETERMINERS),
        rng.choice(ADJECTIVES),
        rng.choice(PEOPLE),
        rng.choice(DEEDS),
        rng.choice(PLACES),
        rng.choice(TIMES),
    )


def show(event: Event) -> str:
    return statement(event.who, event.deed.past, event.rest)


def statement(*parts: str) -> str:
    return capitalised(*parts) + "."


def question(*parts: str) -> str:
    return capitalised(*parts) + "?"


def capitalised(*parts: str) -> str:
    text = " ".join(parts)
    return text[0].upper() + text[1:]


def words_of(event: Event) -> list[str]:
    return show(event).rstrip(".").split()


SENTENCE = Family(
    "sentence",
    draw,
    show,
    (
        asked(
            "word_count",
            lambda event: len(words_of(event)),
            "You are given a sentence. Answer with the number of words in it.",
            "Count the words of the sentence.",
            "How many words long is the sentence?",
            "The number of words in a sentence",
            "Say of how many words the sentence is made.",
            "The tall cook ate soup at home at noon. -> 9",
            "Return len(sentence.split()).",
            "A telegram with the sentence is paid by the word. For how many words must the sender pay?",
        ),
        asked(
            "longest_word",
            lambda event: max(words_of(event), key=len),
            "Here is a sentence. Answer with its longest word, the first one if several are equally long.",
            "Find the word of the sentence with the most letters; of several, take the first.",
            "Which word of the sentence is the longest, or the first of the longest?",
            "The longest word of a sentence, the earlier one in case of a tie",
            "Pick the first word that no other word of the sentence exceeds in length.",
            "The tall cook ate soup at home before dawn. -> before",
            'Return max(sentence.rstrip(".").split(), key=len).',
            "Which word of the sentence needs the most room on paper? If several do, give the first of them.",
        ),
        asked(
            "first_word",
            lambda event: words_of(event)[0],
            "You will see a sentence. Answer with the word that it begins with.",
            "Give the first word of the sentence.",
            "Which word does the sentence start with?",
            "The opening word of a sentence",
            "Keep the word before the first space, with its capital.",
            "His tall cook ate soup at home at noon. -> His",
            "Return sentence.split()[0].",
            "Somebody reads the sentence aloud. What is the very first word that you hear?",
        ),
        asked(
            "last_word",
            lambda event: words_of(event)[-1],
            "The input is a sentence. Answer with the word that it ends with, without the full stop.",
            "Give the last word of the sentence, and leave out the full stop.",
            "Which word does the sentence finish with?",
            "The closing word of a sentence",
            "Keep only the word right before the full stop.",
            "The tall cook ate soup at home at noon. -> noon",
            'Return sentence.rstrip(".").split()[-1].',
            "Somebody reads the sentence aloud. Which single word still rings in your ears at the end?",
        ),
        asked(
            "who",
            lambda event: event.who,
            "You are given a sentence about a deed. Answer with its subject, in small letters: who did it.",
            "Name the person who did something, with all words that belong to the person, in small letters.",
            "Who did it?",
            "The subject of the sentence, in lower case",
            "Copy the words before the verb, without the capital at the beginning.",
            "The tall cook ate soup at home at noon. -> the tall cook",
            "Return event.subject, in lower case.",
            "A detective has read the sentence. Whom does the detective want to question?",
        ),
        asked(
            "verb",
            lambda event: event.deed.past,
            "Here is a sentence. Answer with its verb, just as it is in the sentence.",
            "Copy the verb of the sentence.",
            "Which word of the sentence says what the person did?",
            "The verb, in the past tense as it stands",
            "Find the one word of the sentence that names an action.",
            "The tall cook ate soup at home at noon. -> ate",
            "Return event.verb.",
            "A teacher asks for the doing word of the sentence. Which one is it?",
        ),
        asked(
            "object",
            lambda event: event.deed.object,
            "You will see a sentence. Answer with the direct object of its verb, and its article if it has one.",
            "Name the thing that the person did something to.",
            "What was the thing that was sold, found, eaten, made or the like?",
            "The direct object of the sentence",
            "Copy the words between the verb and the place.",
            "The tall cook ate soup at home at noon. -> soup",
            "Return event.object.",
            "Draw a picture of the sentence without any people. What thing must be in it?",
        ),
        asked(
            "place",
            lambda event: event.place,
            "The input is a sentence. Answer with the words that say where it happened.",
            "Name the place, with the preposition before it.",
            "Where did it happen?",
            "The phrase of the sentence that tells the place",
            "Copy the adverbial of place.",
            "The tall cook ate soup at home at noon. -> at home",
            "Return event.place.",
            "A reporter wants to visit the scene. Where must the reporter go?",
        ),
        asked(
            "time",
            lambda event: event.time,
            "You are given a sentence. Answer with the words that say when it happened.",
            "Name the time, with the preposition before it.",
            "When did it happen?",
            "The phrase of the sentence that tells the time",
            "Copy the adverbial of time.",
            "The tall cook ate soup at home at noon. -> at noon",
            "Return event.time.",
            "The deed goes into a diary. Under what time must it be entered?",
        ),
        asked(
            "adjective",
            lambda event: event.adjective,
            "Here is a sentence. Answer with the adjective in it.",
            "Find the word that describes the person.",
            "What is the person like, in one word?",
            "The adjective of the sentence",
            "Copy the word just before the noun for the person.",
            "The tall cook ate soup at home before dawn. -> tall",
            "Return event.adjective.",
            "Imagine that you have to play the person on stage. Which quality of theirs does the sentence mention?",
        ),
        asked(
            "question",
            lambda event: question("did", event.who, event.deed.base, event.rest),
            "You will see a sentence. Turn it into a question that can be answered with yes or no.",
            "Ask whether what the sentence says is true, in a question that begins with Did.",
            "How would you ask if it happened?",
            "The statement as a yes/no question",
            "Put Did at the beginning, the verb into its base form and a question mark at the end.",
            "The tall cook ate soup at home at noon. -> Did the tall cook eat soup at home at noon?",
            'Return "Did " + subject + " " + base_form + " " + rest + "?".',
            "You aren't sure that the sentence is true. Ask somebody who was there and will nod or shake their head.",
        ),
        asked(
            "negated",
            lambda event: statement(event.who, "did not", event.deed.base, event.rest),
            "The input is a sentence. Negate it, using did not.",
            "Write the sentence so that it says the opposite: the deed was not done.",
            "What is the negative form of the sentence?",
            "The sentence with did not before the verb's base form",
            "Deny what the sentence says, in a full sentence that keeps all its details.",
            "The tall cook ate soup at home at noon. -> The tall cook did not eat soup at home at noon.",
            'Return subject + " did not " + base_form + " " + rest + ".".',
            "The sentence is a false rumour. Set it right by saying that it never happened.",
        ),
        asked(
            "future",
            lambda event: statement(event.who, "will", event.deed.base, event.rest),
            "You are given a sentence in the past tense. Put it into the future with will.",
            "Rewrite the sentence as something that is yet to happen.",
            "How would a fortune teller say the sentence, with will?",
            "The sentence in the future tense",
            "Replace the verb by will and its base form.",
            "The tall cook ate soup at home at noon. -> The tall cook will eat soup at home at noon.",
            'Return subject + " will " + base_form + " " + rest + ".".',
            "It has not happened yet, but it is planned. Change the sentence to fit.",
        ),
        asked(
            "passive",
            lambda event: statement(
                event.deed.object, "was", event.deed.participle, "by", event.who, event.place, event.time
            ),
            "Here is a sentence in the active voice. Put it into the passive, with by before the person.",
            "Rewrite the sentence so that the thing is the subject and the person comes after by.",
            "What is the passive form of the sentence?",
            "The sentence in the passive voice",
            "Begin with the object, go on with was and the past participle, then by and the person, place and time.",
            "The tall cook ate soup at home at noon. -> Soup was eaten by the tall cook at home at noon.",
            'Return object + " was " + participle + " by " + subject + " " + rest + ".".',
            "Tell the same event from the side of the thing: what was done to it, and by whom?",
        ),
        asked(
            "without_adjective",
            lambda event: statement(event.determiner, event.person, event.deed.past, event.rest),
            "You will see a sentence. Write it without its adjective, and otherwise unchanged.",
            "Remove the word that describes the person from the sentence.",
            "How does the sentence read when its adjective is left out?",
            "The sentence minus its adjective",
            "Copy the sentence, but say nothing about what the person is like.",
            "The tall cook ate soup at home at noon. -> The cook ate soup at home at noon.",
            'Return sentence.replace(adjective + " ", "").',
            "An editor strikes out the one describing word. What is printed?",
        ),
        asked(
            "upper",
            lambda event: show(event).upper(),
            "The input is a sentence. Write all of it in capital letters, with the full stop.",
            "Put the sentence into upper case.",
            "What does the sentence look like if every letter is a capital?",
            "The whole sentence in block capitals",
            "Replace each small letter of the sentence by the capital one.",
            "The tall cook ate soup at home at noon. -> THE TALL COOK ATE SOUP AT HOME AT NOON.",
            "Return sentence.upper().",
            "Shout the sentence, as people do in messages.",
        ),
        asked(
            "backwards",
            lambda event: words_of(event)[::-1],
            "You are given a sentence. Write its words in reverse order, without the full stop.",
            "Begin with the last word of the sentence and end with the first; leave out the full stop.",
            "What do you get if you read the sentence word by word from its end?",
            "The words of the sentence from last to first",
            "Turn the order of the words round, but not their letters, and drop the full stop.",
            "The tall cook ate soup at home at noon. -> noon at home at soup ate cook tall The",
            'Return " ".join(reversed(sentence.rstrip(".").split())).',
            "The words are beads on a string. Thread them off from the other end.",
        ),
        asked(
            "who_question",
            lambda event: question("who", event.deed.past, event.rest),
            "Here is a sentence. Write the question about its subject, beginning with Who.",
            "Ask who did it, keeping the thing, the place and the time.",
            "Which question with Who does the sentence answer?",
            "The sentence as a question that asks for the person",
            "Replace the person by Who, and the full stop by a question mark.",
            "The tall cook ate soup at home at noon. -> Who ate soup at home at noon?",
            'Return "Who " + verb + " " + rest + "?".',
            "You know all about the deed except whose it was. What do you ask?",
        ),
        asked(
            "where_question",
            lambda event: question("where did", event.who, event.deed.base, event.deed.object, event.time),
            "You will see a sentence. Write the question about the place, beginning with Where did.",
            "Ask where it happened, keeping the person, the thing and the time.",
            "Which question with Where does the sentence answer?",
            "The sentence as a question that asks for the place",
            "Leave out the place and ask for it in a full question.",
            "The tall cook ate soup at home at noon. -> Where did the tall cook eat soup at noon?",
            'Return "Where did " + subject + " " + base_form + " " + object + " " + time + "?".',
            "You know all about the deed except the spot where it was done. What do you ask?",
        ),
        asked(
            "time_first",
            lambda event: statement(event.time + ",", event.who, event.deed.past, event.deed.object, event.place),
            "The input is a sentence. Move the time to its beginning, followed by a comma.",
            "Start the sentence with when it happened, then a comma, then all the rest.",
            "How does the sentence read if the time comes at the front?",
            "The same sentence with the time in first place",
            "Take the time from the end of the sentence and put it before the person, with a comma.",
            "The tall cook ate soup at home at noon. -> At noon, the tall cook ate soup at home.",
            'Return time.capitalize() + ", " + subject + " " + verb + " " + object + " " + place + ".".',
            "Tell it like a chronicle, in which each sentence opens with the date and a comma.",
        ),
    ),
)
