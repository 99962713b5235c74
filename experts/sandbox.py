"""Running programs that a model wrote."""

from __future__ import annotations

from dataclasses import dataclass

from experts.errors import UserError


@dataclass(frozen=True)
class Run:
    passed: bool


def run_python(program: str) -> Run:
    raise UserError("running the answers' code is not possible yet")
