from __future__ import annotations

import doctest
import random
import signal
import threading
import time
from types import ModuleType

import pytest

from experts.domains import text_of
from experts.domains.judges import bounded, expressions, final_numbers, numbers, rewards
from experts.domains.judges.rewards import REWARDS, choice, exact, last_number, last_word, math_verify

NASTY = [
    *("", " ", "\0", "\ud800", "٣٤", "²", "−", "-", ".", ",", "$", "/", "1/0", "(", "\\", "$$", "{}", "NaN"),
    *("9" * 20_000, "1e999999", "1e999999999999999999999", "0." + "3" * 100_000, "1," * 50_000, "1,111" * 20_000),
    *("-" * 50_000, " " * 50_000, "\n" * 50_000, "(" * 50_000, "is " * 50_000, "answer: " * 20_000, "é" * 20_000),
]


@pytest.mark.parametrize("module", [rewards, final_numbers, numbers, expressions])
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", REWARDS)
def test_junk_is_wrong_and_quick(name: str) -> None:
    rng = random.Random(0)
    noise = ["".join(chr(rng.randrange(1, 0x3000)) for _ in range(200)) for _ in range(20)]
    start = time.process_time()
    for text in NASTY + noise:
        assert REWARDS[name](text, "-41.5") == 0.0
        if name != "math_verify":  # where a long answer costs the whole time limit
            assert REWARDS[name]("-41.5", text) in (0.0, 1.0)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("Paris", "paris", 1),
        ("  new\n york!! ", "New York", 1),
        ("Paris is it", "Paris", 0),
        ("!", "?", 0),
        ("", "x", 0),
    ],
)
def test_exact(text: str, answer: str, score: float) -> None:
    assert exact(text, answer) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("It is a CAT", "cat", 1),
        ("The reversed word is “tac” .", "tac", 1),
        ("cat or dog", "cat", 0),
        ("concat", "cat", 0),
        ("...", "cat", 0),
    ],
)
def test_last_word(text: str, answer: str, score: float) -> None:
    assert last_word(text, answer) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("5 + 2 = 7", "7", 1),
        ("7 and then 8", "7", 0),
        ("it costs $1,234.", "1234", 1),
        ("1,234,567", "1234567", 1),
        ("12,34", "34", 0),  # a decimal comma, or a list: it cannot be told
        ("7.0", "7", 1),
        ("0.1000", ".1", 1),
        ("0.30000000000000001", "0.3", 0),  # exact, not in floating point
        ("12345678901234567890", "12345678901234567891", 0),
        ("-7", "-7", 1),
        ("x=-7", "-7", 1),
        ("(-7)", "-7", 1),
        ("**-7**", "-7", 1),
        ("−7", "-7", 1),
        ("-$7.50", "-7.5", 1),
        ("$-7.50", "-7.5", 1),
        ("5-3", "3", 0),  # not worked out
        ("5-3", "-3", 0),
        ("(5)-3", "3", 1),
        ("x-3", "3", 1),
        ("7", "-7", 0),
        ("50%", "50", 1),
        ("1.5e3", "1500", 1),
        ("3/4", "3/4", 1),
        ("6/8", "3/4", 1),
        ("-3/4", "3/4", 0),
        ("0.75", "3/4", 1),
        ("3/0", "3/4", 0),
        ("14/2", "7", 0),
        ("14/2", "an answer and/or 7", 0),
        ("no number", "7", 0),
        ("7", "no number", 0),
    ],
)
def test_last_number(text: str, answer: str, score: float) -> None:
    assert last_number(text, answer) == score


CITIES = ["Paris", "York", "New York", "Rome."]


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("B", "B", 1),
        ("b", "B", 1),
        ("(B)", "B", 1),
        ("B.", "B", 1),
        ("B) York", "B", 1),
        ("B. York", "B", 1),
        ("The answer is B", "B", 1),
        ("The answer is B, because of the bridge.", "B", 1),
        ("**Answer:** **B**", "B", 1),
        ("Option B", "B", 1),
        (r"\boxed{B}", "B", 1),
        ("york", "B", 1),
        ("It must be York.", "B", 1),
        ("It must be York.", "York", 1),
        ("It must be Rome", "Rome", 1),
        ("C", "B", 0),
        ("New York", "York", 0),  # names New York alone
        ("New York", "C", 1),
        ("Yorkshire", "B", 0),
        ("B. Paris", "B", 0),
        ("Paris or York", "A", 0),
        ("(A) or (B)", "A", 0),
        ("It is not (A). Answer: B", "B", 1),
        ("It is not (A). Answer: B", "A", 0),
        ("Answer: A. Wait. Answer: B", "B", 1),
        ("Answer: A or B", "A", 0),
        ("Answer: B\nor rather (A)", "B", 0),  # not the last word
        ("A city in France", "A", 0),
        ("Z", "B", 0),
        ("", "B", 0),
        ("York", "Berlin", 0),  # no such choice
    ],
)
def test_choice(text: str, answer: str, score: float) -> None:
    assert choice(text, answer, CITIES) == score


def test_choice_without_the_texts() -> None:
    assert choice("I say (C).", "C") == 1
    assert choice("I say (C).", "D") == 0


def test_choices_that_are_letters_have_no_labels() -> None:
    assert choice("A", "A", ["M", "E", "A"]) == 1
    assert choice("A", "M", ["M", "E", "A"]) == 0


def test_choices_that_are_numbers() -> None:
    assert choice("3.5", "3.5", ["3", "3.5", "5"]) == 1
    assert choice("2.3", "3", ["3", "3.5", "5"]) == 0


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        (r"Hence $\frac{2}{4}$.", r"\frac{1}{2}", 1),
        (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$", 1),
        ("The answer is 0.5", "1/2", 1),
        (r"$\sqrt{3}$", r"\sqrt{2}", 0),
        ("no idea", "1/2", 0),
    ],
)
def test_math_verify(text: str, answer: str, score: float) -> None:
    assert math_verify(text, answer) == score


def test_math_verify_in_threads() -> None:
    scores: list[float] = []
    threads = [threading.Thread(target=lambda: scores.append(math_verify("$2/4$", "1/2"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == [1.0] * 4


def test_an_endless_computation_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    start = time.monotonic()
    assert math_verify("$9^{9^{9^9}}$", "1/2") == 0
    assert time.monotonic() - start < 5
    monkeypatch.undo()
    assert math_verify("$2/4$", "1/2") == 1


def test_an_interrupt_leaves_no_answer_behind() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            math_verify("$9^{9^{9^9}}$", "1/2")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert math_verify("$2/3$", "1/2") == 0
    assert math_verify("$2/4$", "1/2") == 1


def test_a_judge_that_cannot_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        bounded.judge("nobody", [], [])
    assert math_verify("$2/4$", "1/2") == 1


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("7", "7"),
        ([{"role": "assistant", "content": "7"}], "7"),
        ([{"role": "assistant", "content": "let me see"}, {"role": "assistant", "content": "7"}], "7"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_text_of(completion: object, text: str) -> None:
    assert text_of(completion) == text  # type: ignore[arg-type]
