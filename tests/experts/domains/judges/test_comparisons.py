"""Who an answer to "who has more?" says it is. Olga has 9 coins, Leo has 3."""

from __future__ import annotations

import pytest

from experts.domains.judges.comparisons import names_who
from experts.domains.word_problems import PEOPLE as PEOPLE_IN_STORIES
from experts.domains.word_problems import WordProblems

PEOPLE = ["Olga", "Leo", "Paul"]

OLGA_HAS_MORE = [
    "Olga",
    "olga.",
    "**Olga**",
    "The answer is Olga.",
    "It's Olga, with 9 coins.",
    "Olga has more.",
    "Olga has more coins.",
    "Olga has more coins than Leo.",
    "Olga has 6 more coins than Leo.",
    "Olga has more coins than Leo. Olga has 9",
    "Leo has fewer coins than Olga.",
    "Leo has 3 coins and Olga has 9. Olga has more coins.",
    "Leo has 3 coins, Olga has 9, so Olga has more.",
    "The one with more coins is Olga.",
    "Between Leo and Olga, the one with the most coins is Olga.",
    "Who has more coins? Olga.",
    "Olga, not Leo.",
    "Leo does not have more coins than Olga; Olga does.",
    "She has more coins than Leo.",
    "Olga has three times as many coins as Leo.",
    "Olga's pile is larger than Leo's.",
    "Olga has 9 coins, which is more than Leo's 3.",
    "Olga has more coins, while Leo has fewer.",
    "Not Leo but Olga has more coins.",
    "It isn't Leo. It's Olga.",
    "It can't be Leo, so Olga.",
    "9 is more than 3, so Olga.",
    "Leo is wrong, Olga is right.",
]
SHE_DOES_NOT = [
    "",
    "Leo",
    "Leo has more coins than Olga.",
    "Leo has 6 more coins than Olga.",
    "Olga has fewer coins than Leo.",
    "Olga has less than Leo.",
    "Leo or Olga",
    "Leo and Olga have more coins.",
    "Both Leo and Olga have more.",
    "Leo has 3 coins and Olga has 9.",
    "Leo has 3 coins and Olga has 9. Who has more coins?",
    "Who has more coins? Leo has 3 and Olga",
    "Olga has more coins than Leo. Leo has more coins than Olga.",
    "Olga has more coins than Leo. The answer is Leo.",
    "Olga does not have more coins than Leo.",
    "Not Olga.",
    "It cannot be Olga.",
    "Olga isn't the answer.",
    "Olga is wrong.",
    "Is it Olga?",
    "I don't think Olga has more coins.",
    "It is false that Olga has more coins than Leo.",
    "Olga or Leo has more coins than Leo or Olga.",
    "Olga has more coins than Olga.",
    "Leo has more coins than Olga, so Olga.",
    "Leo, not Olga.",
    "The one with more coins is Leo.",
    "Leo has fewer coins than Olga. No, Olga has fewer.",
    "They have the same number of coins.",
    "Paul has more coins than Leo.",
    "Olga and Paul",
    "9",
]


@pytest.mark.parametrize("text", OLGA_HAS_MORE)
def test_right_answers(text: str) -> None:
    assert names_who(text, "Olga", "Leo", PEOPLE) == 1


@pytest.mark.parametrize("text", SHE_DOES_NOT)
def test_wrong_answers(text: str) -> None:
    assert names_who(text, "Olga", "Leo", PEOPLE) == 0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Leo", 1),
        ("Leo found fewer coins than Olga.", 1),
        ("Leo found the fewest.", 1),
        ("Olga found more coins than Leo.", 1),
        ("Olga found fewer coins than Leo.", 0),
        ("Leo found more coins than Olga.", 0),
        ("Olga", 0),
    ],
)
def test_who_has_fewer(text: str, score: float) -> None:
    assert names_who(text, "Leo", "Olga", PEOPLE, fewer=True) == score


def test_a_sentence_that_states_the_contrary_earns_nothing_in_the_domain() -> None:
    domain = WordProblems("comparisons", "Who has more.", problems="comparisons", test_size=64)
    rows = domain.load("test")
    for row in rows:
        columns = {name: [value] for name, value in row.items() if name != "prompt"}  # as in training and evaluation
        question = row["question"]
        (other,) = {name for name in PEOPLE_IN_STORIES.split() if name in question} - {row["answer"]}
        verb = "fewer" if "fewer" in question else "more"
        assert domain.reward([f"{row['answer']} has {verb} coins than {other}."], **columns) == [1.0]
        assert domain.reward([f"{other} has {verb} coins than {row['answer']}."], **columns) == [0.0]
        assert domain.reward([question], **columns) == [0.0]


def test_the_answer_alone_is_enough_to_judge_who_has_more() -> None:
    domain = WordProblems("comparisons", "Who has more.", problems="comparisons")
    answers = [
        "Olga has more coins than Leo.",
        "Leo has more coins than Olga.",
        "Olga",
        "Leo",
        "Leo has fewer than Olga.",
    ]
    assert domain.reward(answers, answer=["Olga"] * 5) == [1.0, 0.0, 1.0, 0.0, 1.0]
