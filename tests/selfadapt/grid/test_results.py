"""The results file, and what jobs leave beside it: no line is lost, whoever writes when."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from experts.outside.errors import UserError
from selfadapt.grid.results import (
    Line,
    add_results,
    all_results,
    collect_results,
    leave_results,
    read_results,
)


def line(method: str, scores: str = "01", **fields: Any) -> Line:
    of: dict[str, Any] = {"trained_on": None, "learning_rate": None, "seed": 0, "evaluated_on": "sums", "settings": "s"}
    of |= {"model": "m", "scores": scores, "right": scores.count("1"), "n": len(scores)}
    return Line(method=method, **{**of, **fields})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "cells").mkdir()
    return tmp_path / "results.jsonl"


def test_what_jobs_leave_is_taken_in_the_order_of_the_grid(results: Path) -> None:
    add_results(results, [line("b", "11")])
    for method in "dca":
        leave_results(results, [line(method)])
    assert read_results(results) == [line("b", "11")]
    found = all_results(results)
    assert sorted(each.method for each in found) == ["a", "b", "c", "d"]
    collect_results(results, [f"{method}/sums" for method in "abcd"])
    assert read_results(results) == [line("a"), line("b", "11"), line("c"), line("d")]
    assert not list((results.parent / "cells").iterdir())
    before = results.stat().st_mtime_ns
    collect_results(results)  # nothing is left, and nothing written
    assert results.stat().st_mtime_ns == before


@pytest.mark.parametrize("results_first", [True, False])
def test_results_take_the_place_of_failures_in_whatever_order_they_are_left(results: Path, results_first: bool) -> None:
    attempts = [[line("a", "11")], [line("a", "", error="OutOfMemoryError: …")]]
    for attempt in attempts if results_first else attempts[::-1]:
        leave_results(results, attempt)
    assert all_results(results) == [line("a", "11")]
    collect_results(results)
    assert read_results(results) == [line("a", "11")]


def test_a_file_that_is_damaged_is_named_and_stays(results: Path) -> None:
    leave_results(results, [line("a")])
    (file,) = (results.parent / "cells").iterdir()
    file.write_text("{}\n")
    for read in (all_results, collect_results):
        with pytest.raises(UserError, match=f"{file}:1 is not a line of results"):
            read(results)
    assert file.exists()


def test_jobs_that_leave_lines_while_others_collect_lose_none(results: Path) -> None:
    names = [f"m{number}" for number in range(40)]
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            collect_results(results)

    seen: list[int] = []
    collectors = [threading.Thread(target=collect) for _ in range(2)]
    for thread in collectors:
        thread.start()
    for name in names:
        leave_results(results, [line(name)])
        seen.append(len(all_results(results)))
    done.set()
    for thread in collectors:
        thread.join()
    assert seen == [*range(1, 41)]  # at no moment is a line nowhere
    collect_results(results)
    assert sorted(each.method for each in read_results(results)) == sorted(names)
