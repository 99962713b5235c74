"""Documents become dataclasses: blocks in blocks, choices with and without a default, and every mistake in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from experts.outside.errors import UserError
from selfadapt.recipes.configuration import Choice, make, overlay, override, spell_out


@dataclass(frozen=True)
class Round:
    radius: float


@dataclass(frozen=True)
class Ring(Round):
    width: float = 1.0


@dataclass(frozen=True)
class Named:
    kind: str
    size: int = 1


@dataclass(frozen=True)
class Paint:
    colour: str = "red"
    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError("layers must be at least 1")


SHAPES: dict[str, type] = {"round": Round, "ring": Ring, "star": Named, "leaf": Named}


@dataclass(frozen=True)
class Thing:
    shape: Annotated[Round | Ring | Named, Choice("kind", SHAPES, noun="shape")]
    edge: Annotated[Round | Ring, Choice("form", SHAPES, default="ring")] = field(default_factory=lambda: Ring(1))
    paint: Paint = field(default_factory=Paint)
    heavy: bool = False


def test_a_document_is_read_into_its_classes_and_spelled_out_again() -> None:
    thing = make(Thing, {"shape": {"kind": "leaf", "size": 2}, "edge": {"radius": 3}, "paint": {"layers": 2}}, "x")
    assert thing == Thing(Named("leaf", 2), Ring(3), Paint(layers=2))
    document = spell_out(thing)
    assert document["shape"] == {"kind": "leaf", "size": 2}  # of a class that stands under two names
    assert document["edge"] == {"radius": 3, "width": 1.0}  # the default is not spelled out
    assert make(Thing, document, "x") == thing
    assert make(Thing, {"shape": {"kind": "round", "radius": 1}, "edge": {"form": "round", "radius": 1}}, "x").edge == (
        Round(1)
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (3, "x must be a mapping of shape, edge, paint, heavy"),
        ({}, "x: shape needs a kind, one of round, ring, star, leaf"),
        ({"shape": {"kind": None}}, "x: shape needs a kind"),
        ({"shape": None}, "x: shape must be a mapping"),
        ({"shape": {"kind": "rong"}}, "x: unknown shape 'rong'; did you mean 'ring' or 'round'"),
        ({"shape": {"kind": "round", "radius": 1, "with": 2}}, "x: unknown field 'shape.with'"),
        ({"shape": {"kind": "round"}}, "x: shape.radius: "),
        ({"shape": {"kind": "round", "radius": True}}, "x: shape.radius: must be a number, not true"),
        ({"shape": {"kind": "round", "radius": 1}, "paint": {"color": "blue"}}, "'paint.color'; did you mean 'paint.c"),
        ({"shape": {"kind": "round", "radius": 1}, "paint": {"layers": 0}}, "x: layers must be at least 1"),
        ({"shape": {"kind": "round", "radius": 1}, "paint": "blue"}, "x: paint must be a mapping"),
        ({"shape": {"kind": "round", "radius": 1}, "heavy": 7}, "x: heavy: "),
        ({"shape": {"kind": "round", "radius": 1}, 3: 7}, "x: unknown field '3'"),
    ],
)
def test_a_mistake_is_one_line_that_names_place_and_field(document: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make(Thing, document, "x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_choice_keeps_the_fields_that_both_know() -> None:
    ring = {"edge": {"radius": 3, "width": 2}}
    assert overlay(Thing, ring, {"edge": {"form": "round"}}) == {"edge": {"form": "round", "radius": 3}}
    assert overlay(Thing, ring, {"edge": {"form": "ring"}}) == {"edge": {"form": "ring", "radius": 3, "width": 2}}


def test_every_field_is_an_option() -> None:
    thing = Thing(Round(1))
    got = override(thing, ["--shape.radius", "2", "--paint.layers", "3", "--heavy"], prog="make")
    assert got == Thing(Round(2), paint=Paint(layers=3), heavy=True)
