"""Final answers as models write them, right ones and wrong ones of each kind."""

from __future__ import annotations

import doctest
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from experts.domains.gsm8k import Gsm8k
from experts.domains.judges import (
    brackets,
    choices,
    expressions,
    final_numbers,
    latex,
    numbers,
    programs,
    relations,
    units,
    words,
    writing,
)
from experts.domains.judges.comparisons import names_who
from experts.domains.judges.rewards import REWARDS, choice, last_number, last_word, math_verify

NUMBERS = [
    (r"\boxed{$9{,}500}", "9500"),
    (r"9\,500", "9500"),
    ("1 000", "1000"),
    ("1\u202f000", "1000"),
    ("1\u00a0000", "1000"),
    ("1'000", "1000"),
    ("1’000", "1000"),
    (r"10{,}000", "10000"),
    ("–3", "-3"),
    ("x = - 3", "-3"),
    ("−7", "-7"),
    ("**18**", "18"),
    (r"\$18", "18"),
    (r"18\text{ dollars}", "18"),
    ("18 dollars.", "18"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("1.5e3", "1500"),
    (r"1.5 \times 10^3", "1500"),
    ("It is 7, not 8.", "7"),
    ("$18.00", "18"),
    ("1 234 567", "1234567"),
    ("12 m^2", "12"),
    ("- 3 apples", "3"),
    ("x-3", "3"),
    ("(5)-3", "3"),
    ("**-7**", "-7"),
    ("-$7.50", "-7.5"),
    ("$-7.50", "-7.5"),
    ("3/4", "3/4"),
    ("6/8", "3/4"),
    (r"\frac{3}{4}", "3/4"),
    ("0.75", "3/4"),
    ("-3/4", "-3/4"),
    ("5 + 2 = 7", "7"),
    (r"\boxed{18} in 7 days", "18"),
    ("1,234,567", "1234567"),
    ("answer: - 3", "-3"),
    ("0.1000", ".1"),
]
OTHER_NUMBERS = [
    ("2:30", "30"),
    ("12,34", "34"),
    ("3,5", "5"),
    ("7 or 8", "8"),
    ("14/2", "7"),
    ("14/2", "2"),
    ("2^{10}", "10"),
    ("2^10", "2"),
    ("-3", "3"),
    ("3", "-3"),
    ("9,500", "500"),
    ("1.234,56", "56"),
    ("7, not 8", "8"),
    ("3/0", "3/4"),
    ("3/4", "4"),
    ("", "1"),
    ("1:000", "0"),
    ("9,5000", "5000"),
    ("2**10", "10"),
    ("5 or 7", "5"),
    ("5-3", "3"),
    ("5 - 3", "3"),
]
FINAL_LINES = [
    ("#### 18\n#### ", "18"),
    ("#### 18\n####", "18"),
    ("#### $18 every day for 7 days", "18"),
    ("#### 5 + 13 = 18", "18"),
    ("#### **18**", "18"),
    ("#### 1 000", "1000"),
    ("#### 9,500 dollars", "9500"),
    ("#### -3", "-3"),
    ("#### - 3", "-3"),
    ("#### The answer is 18", "18"),
    ("#### 18.", "18"),
    ("#### 18%", "18"),
    ("so 18", "18"),
    (r"#### \$18", "18"),
    (r"#### \boxed{18}", "18"),
    ("####18 eggs\nand 7", "18"),
    ("#### 18 eggs, not 7", "18"),
]
OTHER_FINAL_LINES = [
    ("#### 2:30", "30"),
    ("#### 2:30", "2"),
    ("#### 18 or 20", "18"),
    ("#### 18 or 20", "20"),
    ("#### 7 days at $18", "18.5"),
    ("#### 18, 20", "20"),
    ("#### 18, 20", "18"),
    ("18\n#### 20", "18"),
    ("#### 5 + 13 = 18", "5"),
    ("#### $18 every day for 7 days", "7"),
    ("####", "18"),
]
LETTERS = [
    ("**B**", "B"),
    ("a)", "A"),
    ("<B>", "B"),
    ("(b)", "B"),
    ("[C]", "C"),
    ("B.", "B"),
    ("b", "B"),
    ("B) Lyon", "B"),
    ("answer is (B) Lyon, because Paris is the capital", "B"),
    ("\\boxed{B}", "B"),
    ("Option B", "B"),
    ("not A but B", "B"),
    ("It isn't A. It's B.", "B"),
    ("The answer is B.", "B"),
    ("**Answer:** **B**", "B"),
    ("Answer: B", "B"),
    ("**B. Lyon**", "B"),
    ("B, because of the bridge", "B"),
    ("B is right, A is wrong", "B"),
    ("The answer is B, not A.", "B"),
    ("\\boxed{\\text{B}}", "B"),
    ("It is not (A). Answer: B", "B"),
]
OTHER_LETTERS = [
    "A",
    "not B",
    "It isn't B",
    "A or B",
    "(A) or (B)",
    "A, B, C, D",
    "A. Paris\nB. Lyon\nC. New York\nD. Rome",
    "B is wrong",
    "The answer is not B.",
    "Answer: A or B",
    "Both A and B",
    "",
    "Which? A, B, C or D",
    "C, because B is small",
    "The answer is A, not B.",
    "Not B but A",
    "It isn't (B).",
    "The answer isn't B. It's A.",
    "It can't be B",
    "Anything but B",
    "neither A nor B",
]
EXPRESSIONS = [
    ("10\\pi", "\\boxed{10\\pi}"),
    ("6 - 5i", "\\boxed{-5i+6}"),
    ("3, 5, 7", "\\boxed{7,5,3}"),
    ("2^{10}", "1024"),
    ("x=5", "5"),
    ("1,234", "1234"),
    ("y = 2x + 3", "$y = 3 + 2x$"),
    ("(-\\infty, 2)", "$(-\\infty, 2)$"),
    ("\\frac{1}{2}", "0.5"),
    ("90^\\circ", "90"),
    ("$(x+1)^2$", "\\boxed{x^2+2x+1}"),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"),
    # Without `$`, and with other spaces.
    *(("6 - 5i", text) for text in ("6-5i", "6 - 5 i", "-5i+6", "The answer is 6-5i.", "z = 6 - 5i")),
    *(("y = 2x + 3", text) for text in ("y=2x+3", "2x+3", "The line is y = 3 + 2x.")),
    *(("3, 5, 7", text) for text in ("3,5,7", "7, 5, 3", "The answers are 3, 5 and 7.", "x = 3, x = 5, or x = 7")),
    *(("10\\pi", text) for text in ("10 pi", "10π", "10pi", "10 \\pi", "The area is 10 pi cm^2.")),
    *(("\\text{Evelyn}", text) for text in ("Evelyn", "The answer is Evelyn.", "\\boxed{Evelyn}", "It's **Evelyn**.")),
    *(("\\text{(C)}", text) for text in ("C", "(C)", "The answer is (C).", "\\text{C}")),
    *(("2\\sqrt 3", text) for text in ("2√3", "2 sqrt(3)", "2*sqrt(3)", "$2\\sqrt{3}$")),
    ("(-\\infty, 3]", "(-inf,3]"),
    ("\\frac{2\\pi}{3}", "2/3 pi"),
    ("3\\frac12", "3 1/2"),
    ("\\ln 2", "ln 2"),
    ("\\pm 5", "±5"),
    ("(x+1)^2", "x**2 + 2x + 1"),
    ("x < 3", "x<3"),
    ("3 : 4", "3:4"),
    ("3", "so 3x = 9, x = 3"),
    ("6", "not 5 but 6"),
    ("\\sqrt x", "It is not $2$, it is $\\sqrt{x}$."),
    ("6", "6, not 7"),
    ("\\text{no solution}", "There is no solution."),
]
OTHER_EXPRESSIONS = [
    ("10\\pi", "10"),
    ("y = 2x + 3", "3"),
    ("6 - 5i", "5"),
    ("3, 5, 7", "7"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "2"),
    ("2^{10}", "2"),
    ("2^{10}", "10"),
    ("(-\\infty, 2)", "2"),
    ("(-\\infty, 2)", "$(-\\infty, 2]$"),
    ("(3,4)", "4"),
    ("2", "\\boxed{2, 3}"),
    ("2", "\\boxed{3} no \\boxed{2}"),
    ("6", "not 6"),
    ("6", "It is not $6$."),
    ("6", "The answer isn't 6."),
    ("6", "Is it 6?"),
    ("6!", "6"),
    ("6 - 5i", "6+5i"),
    ("3, 5, 7", "3,5,8"),
    ("10\\pi", "20 pi"),
    ("\\ln 2", "2"),
    ("x < 3", "3"),
    ("3:4", "4:3"),
    ("12", "1, 2"),
    ("\\text{Evelyn}", "not Evelyn"),
    ("\\text{Evelyn}", "Carla, Evelyn"),
    ("\\text{C}", "C major"),
]


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_a_number_is_read_as_people_write_it(text: str, answer: str) -> None:
    assert last_number(text, answer) == 1


@pytest.mark.parametrize(("text", "answer"), OTHER_NUMBERS)
def test_what_is_another_number_or_none(text: str, answer: str) -> None:
    assert last_number(text, answer) == 0


@pytest.mark.parametrize(("text", "answer"), FINAL_LINES)
def test_a_final_line_gives_the_answer(text: str, answer: str) -> None:
    assert Gsm8k().reward([text], answer=[answer]) == [1]


@pytest.mark.parametrize(("text", "answer"), OTHER_FINAL_LINES)
def test_a_final_line_gives_another_answer_or_none(text: str, answer: str) -> None:
    assert Gsm8k().reward([text], answer=[answer]) == [0]


@pytest.mark.parametrize("choices", [["Paris", "Lyon", "New York", "Rome"], []])
def test_a_choice_as_it_is_written_and_what_is_none(choices: list[str]) -> None:
    assert [(text, answer) for text, answer in LETTERS if not choice(text, answer, choices)] == []
    assert [text for text in OTHER_LETTERS if choice(text, "B", choices)] == []


@pytest.mark.parametrize(("answer", "text"), EXPRESSIONS)
def test_an_expression_equals_the_answer(answer: str, text: str) -> None:
    assert math_verify(text, answer) == 1


@pytest.mark.parametrize(("answer", "text"), OTHER_EXPRESSIONS)
def test_a_part_of_the_answer_is_not_the_answer(answer: str, text: str) -> None:
    assert math_verify(text, answer) == 0


# A line is a text, the right answer and its score, for one judge; "comparisons" is about Olga and Leo.
CASES: dict[str, list[dict[str, Any]]] = defaultdict(list)
for line in Path(__file__).with_name("final_answers.jsonl").read_text(encoding="utf-8").splitlines():
    CASES[json.loads(line)["judge"]].append(json.loads(line))


def score(case: dict[str, Any]) -> float:
    text, answer = case["text"], case["answer"]
    match case["judge"]:
        case "gsm8k":
            return Gsm8k().reward([text], answer=[answer])[0]
        case "comparisons":
            return names_who(text, answer, "Leo", ["Anna", "Leo", "Olga"])
        case "choice":
            return choice(text, answer, case["choices"])
        case judge:
            return REWARDS[judge](text, answer)


@pytest.mark.parametrize("judge", CASES)
def test_right_and_wrong_answers_in_the_ways_that_models_write_them(judge: str) -> None:
    assert [case for case in CASES[judge] if score(case) != case["score"]] == []


def test_a_letter_counts_without_the_words_of_the_choices() -> None:
    lettered = [case for case in CASES["choice"] if case["answer"] == "B" and "Lyon" not in case["text"]]
    assert [
        case for case in lettered if case["score"] and "yon" not in case["text"] and choice(case["text"], "B") < 1
    ] == []
    assert [case for case in lettered if not case["score"] and choice(case["text"], "B")] == []


UNLIKE = ["no change", "It does not move", "not enough light", "more than 3 days", "A and B are right", "Neither"]


@pytest.mark.parametrize("index", range(len(UNLIKE)))
def test_a_choice_may_say_no_itself(index: int) -> None:
    letter, words = "ABCDEF"[index], UNLIKE[index]
    for text in (
        words,
        f"{letter}. {words}",
        f"The answer is {words}.",
        f"I think it is {words}.",
        f"{letter}) {words}",
    ):
        assert choice(text, letter, UNLIKE) == 1
        assert choice(text, "ABCDEF"[index - 1], UNLIKE) == 0


def test_no_character_stands_for_a_choice() -> None:
    assert choice("\ue001", "B", ["a hen", "a lamp"]) == 0


def test_a_number_among_the_choices_is_not_part_of_another() -> None:
    own = ["3", "3.5", "-3", "13", "3/4", "30%"]
    assert [[choice(f"It is {said}.", right, own) for said in own] for right in own] == [
        [float(said == right) for said in own] for right in own
    ]


LONG = [
    "9",
    "1,",
    "1 or ",
    "1 + ",
    "1 000 ",
    "1'000",
    "1_",
    "x^",
    " or ",
    "(",
    "[B",
    "B, ",
    "not ",
    " ",
    "\n",
    "*\n",
    "-",
    "_",
]
LONG += [
    "because ",
    "#### 1\n",
    "than 1 ",
    "Olga more ",
    "is Olga more ",
    "<a",
    "answer to ",
    "\\boxed{",
    "\\text{",
    "\nWhy",
    "($",
    "(1, ",
    "\\text{ m} ",
    "1 m",
    "as B is, ",
    "</b>",
    "one ",
    "one hundred ",
    "5 dozen ",
    "2x ",
    "x + ",
    "f(x",
    "~~",
    "~~~\n",
    "```\n",
    "def f():\n",
    "[x] ",
    "n't as ",
    "Ｂ",
    "<sub>",
    "\nQ:",
    "answer: 1 ",
    "do you ",
    "1 (a",
    "\n1.",
    "other options ",
    "While ",
    "A. ",
]


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_are_read_in_time_that_grows_with_their_length(piece: str) -> None:
    text = piece * (10_000 // len(piece))
    start = time.process_time()
    last_number(text, "5")
    last_word(text, "x")
    choice(text, "B", ["Paris", "Lyon"])
    names_who(text, "Olga", "Leo", ["Olga", "Leo"])
    Gsm8k().reward([text], answer=["5"])
    brackets.arrangement(expressions.final_expression(text[-2000:]))
    units.thing(text[-2000:])
    latex.as_latex(text[-2000:])
    relations.is_unsolved(text[-2000:])
    words.in_digits(text)
    programs.program_in(text)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "module",
    [brackets, choices, expressions, final_numbers, latex, numbers, programs, relations, units, words, writing],
)
def test_examples_of_the_readers(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
