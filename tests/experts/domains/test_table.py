"""The table of domains, and what a domain may have beside the protocol."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import experts.domains
from experts.domains import KINDS, answers_of, check_domain
from experts.domains.code import Code
from experts.domains.multiple_choice import MultipleChoice
from experts.outside.errors import UserError

# What other domains are made of.
HELPERS = {"__init__", "base", "published", "sandbox", "sandbox_child"}


def test_every_file_of_a_domain_stands_in_the_table() -> None:
    files = {path.stem for path in Path(experts.domains.__file__).parent.glob("*.py")} - HELPERS
    assert files == {cls.__module__.rpartition(".")[2] for cls in KINDS.values()}
    for kind, cls in KINDS.items():
        named = {field.name for field in fields(cls)} | set(dir(cls))  # type: ignore[arg-type]
        assert {"name", "description", "load", "reward"} <= named, kind


@pytest.mark.parametrize("cls", [MultipleChoice, Code])
def test_every_data_set_of_a_class_is_a_kind(cls: Any) -> None:
    from experts.domains import code, multiple_choice

    known = {MultipleChoice: multiple_choice.DATASETS, Code: code.DATASETS}[cls]
    assert {kind for kind, each in KINDS.items() if each is cls} == {*known}


class Own:
    name = "own"
    description = "Whatever."

    def load(self, split: str) -> Any: ...
    def reward(self, completions: Any, **columns: Any) -> Any: ...


def test_a_domain_need_have_no_more_than_the_protocol() -> None:
    assert list(answers_of(Own())) == []
    check_domain(Own())


def test_a_domain_may_know_its_answers_and_refuse_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Own):
        answers = ("yes", "no")

        def check(self) -> None:
            raise UserError("not here")

    assert list(answers_of(Closed())) == ["yes", "no"]
    with pytest.raises(UserError, match="not here"):
        check_domain(Closed())
    monkeypatch.delenv("SELFADAPT_RUN_CODE", raising=False)
    with pytest.raises(UserError, match="SELFADAPT_RUN_CODE=1"):
        check_domain(Code("mbpp"))
