"""Rows are grouped into the cheapest passes that there are."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from experts.training.passes import alike


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 9), st.none() | st.integers(1, 6))
def test_rows_of_about_one_length_pass_together_as_cheaply_as_can_be(
    lengths: list[int], apart: int, at_most: int | None
) -> None:
    groups = alike(lengths, apart, at_most)

    def cost(groups: list[list[int]]) -> int:
        return sum(apart + len(group) * max(lengths[row] for row in group) for group in groups)

    def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
        if not rows:
            yield []
        for smaller in partitions(rows[1:]) if rows else []:
            yield [[rows[0]], *smaller]
            for place in range(len(smaller)):
                yield [*smaller[:place], [rows[0], *smaller[place]], *smaller[place + 1 :]]

    allowed = [
        each
        for each in partitions([*range(len(lengths))])
        if at_most is None or all(len(group) <= at_most for group in each)
    ]
    assert sorted(map(sorted, groups)) in [sorted(map(sorted, each)) for each in allowed]
    assert cost(groups) == min(map(cost, allowed))
