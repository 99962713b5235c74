"""What is known of a person, such as "Name: Anna Berg; age: 34; city: Oslo; job: nurse"."""

from __future__ import annotations

import json
import random
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import with_article, words


class Person(NamedTuple):
    first: str
    surname: str
    age: int
    city: str
    job: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"


FIRST_NAMES = words(
    """
    Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Maria Noah Olga Paul Rosa Simon Tara Victor Wendy
    Alan Bella Carl Diana Erik Fiona George Helen Ivan Julia Karl Lena Martin Nina Oscar Petra Robert Sofia Tom
    """
)
SURNAMES = words(
    """
    Berg Carter Dale Evans Fisher Grant Hill Irving Jones Keller Lund Moss Novak Owen Parker Reed Stone Turner Vance
    Wells Young Adams Brooks Clark Drew Ellis Ford Green Hayes Ingram Jensen King Lopez Miller Nolan Olsen Price Rossi
    Silva Weber
    """
)
CITIES = words(
    """
    Oslo Paris Lisbon Rome Cairo Dublin Vienna Lima Tokyo Boston Madrid Prague Athens Berlin London Delhi Sydney Quito
    Riga Turin Bern Toronto Nairobi Warsaw
    """
)
JOBS = words(
    """
    nurse baker teacher engineer pilot farmer lawyer actor cook painter doctor driver tailor gardener architect dentist
    plumber waiter author judge
    """
)


def draw(rng: random.Random) -> Person:
    age = rng.randint(18, 80) if rng.random() < 2 / 3 else rng.randint(6, 17)
    job = rng.choice(JOBS) if age >= 18 else rng.choice(("pupil", "student"))
    return Person(rng.choice(FIRST_NAMES), rng.choice(SURNAMES), age, rng.choice(CITIES), job)


def show(person: Person) -> str:
    return f"Name: {person.name}; age: {person.age}; city: {person.city}; job: {person.job}"


RECORD = Family(
    "record",
    draw,
    show,
    (
        asked(
            "name",
            lambda person: person.name,
            "You are given a record about a person. Answer with the person's full name.",
            "Copy the first name and the surname.",
            "What is the person called in full?",
            "The whole name in the record",
            "Read the field Name and nothing else.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Mia Roth",
            'Return record["name"].',
            "What should be printed on the person's door, if there is room for both names?",
        ),
        asked(
            "first_name",
            lambda person: person.first,
            "Here is a record about a person. Answer with the person's first name only.",
            "Give the first name, without the surname.",
            "By what name do friends call the person?",
            "The given name in the record",
            "Take the first word of the full name.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Mia",
            'Return record["name"].split()[0].',
            "What would the person's mother shout across the playground?",
        ),
        asked(
            "surname",
            lambda person: person.surname,
            "You will see a record about a person. Answer with the person's surname only.",
            "Give the family name, without the first name.",
            "Which name does the person share with the family?",
            "The last name in the record",
            "Take the second word of the full name.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Roth",
            'Return record["name"].split()[-1].',
            "Under which name would an old telephone book list the person?",
        ),
        asked(
            "age",
            lambda person: person.age,
            "The input is a record about a person. Answer with the person's age in years.",
            "Copy the age.",
            "How old is the person now?",
            "The number of years that the person has lived",
            "Read the field age and nothing else.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> 51",
            'Return record["age"].',
            "How many candles were on the person's last birthday cake?",
        ),
        asked(
            "city",
            lambda person: person.city,
            "You are given a record about a person. Answer with the city where the person lives.",
            "Copy the city.",
            "Where does the person live?",
            "The person's place of residence",
            "Read the field city and nothing else.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Ghent",
            'Return record["city"].',
            "You want to pay the person a visit at home. Where do you have to travel?",
        ),
        asked(
            "job",
            lambda person: person.job,
            "Here is a record about a person. Answer with what the person does for a living or is learning as.",
            "Copy the job.",
            "What is the person's occupation?",
            "The person's job or other occupation",
            "Read the field job and nothing else.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> potter",
            'Return record["job"].',
            "What would the person say when asked at a party what they do all day?",
        ),
        asked(
            "initials",
            lambda person: person.first[0] + person.surname[0],
            "You will see a record about a person. Answer with the person's initials, two capitals written together.",
            "Give the first letters of the first name and the surname, without dots or spaces.",
            "What are the person's initials?",
            "The two initials of the person",
            "Shorten the full name to two letters.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> MR",
            'Return "".join(word[0] for word in record["name"].split()).',
            "Which two letters would the person embroider on a handkerchief?",
        ),
        asked(
            "birth_year",
            lambda person: 2024 - person.age,
            "The input is a record about a person, as of the end of 2024. Answer with the person's year of birth.",
            "Subtract the age from 2024.",
            "If the year is 2024 and this year's birthday is over, in what year was the person born?",
            "The year of birth, reckoned from 2024",
            "Work out the year in which the person was born from the age at the end of 2024.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> 1973",
            'Return 2024 - record["age"].',
            "It is New Year's Eve 2024. Which year should the person look for on a bottle of wine as old as they are?",
        ),
        asked(
            "adult",
            lambda person: person.age >= 18,
            "You are given a record about a person. Answer yes if the person is at least 18 years old, and no if not.",
            "Say whether the person is an adult: yes or no.",
            "Is the person 18 or older?",
            "Yes for a person of 18 years or more, no for anybody younger",
            "Check whether the person has come of age, which one does at 18.",
            "age: 51 -> yes; age: 17 -> no; age: 18 -> yes; age: 9 -> no",
            'Return "yes" if record["age"] >= 18 else "no".',
            "Voting is allowed from 18 on. May the person vote?",
        ),
        asked(
            "sentence",
            lambda person: f"{person.name}, {person.age}, is {with_article(person.job)} in {person.city}.",
            "Here is a record about a person. Put it into a sentence like: Mia Roth, 51, is a potter in Ghent.",
            "Write one sentence with the name, the age between commas, the job and the city.",
            "How would a newspaper introduce the person in a sentence, with the age after the name?",
            "The whole record as one sentence",
            "Tell in a sentence who the person is: name, comma, age, comma, is a or an, job, in, city, full stop.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Mia Roth, 51, is a potter in Ghent.",
            'Return f"{name}, {age}, is {a_or_an} {job} in {city}.".',
            "Turn the form into a caption for the person's photograph, in the form of a full sentence.",
        ),
        asked(
            "email",
            lambda person: f"{person.first}.{person.surname}@example.org".lower(),
            "You will see a record about a person. Answer with an e-mail address at example.org made of both names, "
            "in small letters and with a dot between them.",
            "Make the person's e-mail address: first name, dot, surname, @example.org, all in lower case.",
            "At example.org, addresses have the form first.last. What is the person's e-mail address?",
            "The person's mail address at example.org",
            "Create an e-mail account for the person at example.org, named after first name and surname.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> mia.roth@example.org",
            'Return f"{first}.{last}@example.org".lower().',
            "The person works for example.org. Where do you send a mail so that it arrives?",
        ),
        asked(
            "user_name",
            lambda person: (person.first[0] + person.surname).lower(),
            "The input is a record about a person. Answer with a user name: the first letter of the first name and "
            "the surname, together and in small letters.",
            "Make a log-in of the first initial and the whole surname, in lower case.",
            "What is the person's user name if it is the initial and the family name, without a capital?",
            "The user name made of one letter of the first name and all of the surname",
            "Shorten the first name to a letter, append the surname, and use no capitals or spaces.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> mroth",
            "Return (first[0] + last).lower().",
            "An administrator logs Tim Cole in as tcole. What does this person's log-in look like?",
        ),
        asked(
            "surname_first",
            lambda person: f"{person.surname}, {person.first}",
            "You are given a record about a person. Write the surname, a comma and the first name.",
            "Write the name as Surname, First name.",
            "How does the name stand in an alphabetical register, with a comma?",
            "The name in the order surname, first name",
            "Swap the two parts of the name and put a comma between them.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Roth, Mia",
            'Return f"{last}, {first}".',
            "How would a librarian write the person's name on the catalogue card of a book?",
        ),
        asked(
            "json",
            lambda person: json.dumps({"name": person.name, "age": person.age}),
            "Here is a record about a person. Write a JSON object with the keys name and age, in one line.",
            "Write the name and the age as JSON, and leave out the rest.",
            "What is the JSON for the person's name (a string) and age (a number)?",
            "A JSON object with the fields name and age only",
            "Convert the first two fields of the record to JSON, with keys in small letters.",
            'Name: Mia Roth; age: 51; city: Ghent; job: potter -> {"name": "Mia Roth", "age": 51}',
            'Return json.dumps({"name": name, "age": age}).',
            "A web service wants to know the person's name and age, in curly braces and quotes. What do you send it?",
        ),
        asked(
            "csv",
            lambda person: f"{person.first},{person.surname},{person.age},{person.city},{person.job}",
            "You will see a record about a person. Write it as a line of CSV: first name, surname, age, city and job, "
            "with commas and no spaces.",
            "Turn the record into comma-separated values, with the two names apart.",
            "What is the person's line in a CSV file with the columns first,last,age,city,job?",
            "The record as five values with commas between them and no labels",
            "Drop the labels, and put commas without spaces between first name, surname, age, city and job.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Mia,Roth,51,Ghent,potter",
            'Return ",".join([first, last, str(age), city, job]).',
            "The person goes into a spreadsheet of five columns that is saved as plain text. What is the line?",
        ),
        asked(
            "greeting",
            lambda person: f"Dear {person.name},",
            "The input is a record about a person. Begin a letter to them: Dear, the full name, a comma.",
            "Write a polite salutation with Dear and both names.",
            "What is the first line of a letter to the person?",
            "The opening of a letter: Dear, first name, surname and a comma",
            "Address the person in writing, beginning with Dear.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Dear Mia Roth,",
            'Return f"Dear {name},".',
            "You are about to write the person a letter. Put down the words before the letter proper.",
        ),
        asked(
            "in_five_years",
            lambda person: person.age + 5,
            "You are given a record about a person. Answer with the age that the person will have in five years.",
            "Add five to the age.",
            "How old will the person be five years from now?",
            "The person's age five years later",
            "Work out the age after another five years.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> 56",
            'Return record["age"] + 5.',
            "Half a decade passes. How many candles does the person's cake need then?",
        ),
        asked(
            "years_to_100",
            lambda person: 100 - person.age,
            "Here is a record about a person. Answer with the number of years until the person is 100 years old.",
            "Subtract the age from 100.",
            "In how many years will the person be a hundred?",
            "The years that the person lacks to the age of 100",
            "Work out how long it is until the hundredth birthday, in years.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> 49",
            'Return 100 - record["age"].',
            "The person means to become a centenarian. How many years are still to go?",
        ),
        asked(
            "name_and_job",
            lambda person: f"{person.name} ({person.job})",
            "You will see a record about a person. Write the full name, and after it the job in brackets.",
            "Give the name followed by the job in parentheses.",
            "Who is the person and, in brackets, what do they do?",
            "The full name with the job in brackets",
            "Leave out the age and the city, and bracket the job.",
            "Name: Mia Roth; age: 51; city: Ghent; job: potter -> Mia Roth (potter)",
            'Return f"{name} ({job})".',
            "Two people have the same name. Mark this one by adding the job in round brackets.",
        ),
    ),
    split="test",
)
