from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experts.mixture import Mixture
from experts.outside.errors import UserError


def test_rows_say_who_has_a_part() -> None:
    mixture = Mixture(("a", "b"), torch.tensor([[0.5, 0.25], [0, 0], [0, 1]]))
    assert [mixture[row] for row in range(len(mixture))] == [{"a": 0.5, "b": 0.25}, {}, {"b": 1.0}]
    assert mixture.rows([2, 0])[1] == {"a": 0.5, "b": 0.25}
    assert len(Mixture.of({}).expand(3)) == 3
    assert Mixture.of({"a": 1.0}, prompts=2)[1] == {"a": 1.0}


def test_a_file_round_trip(tmp_path: Path) -> None:
    for path in (tmp_path / "MIX.json", str(tmp_path / "again.json")):
        Mixture.of({"a": 0.75, "b": 0.25}).write(path)
        assert Mixture.read(path) == Mixture.of({"a": 0.75, "b": 0.25})


def test_equal_mixtures_say_the_same(tmp_path: Path) -> None:
    def mixture(weight: float = 0.5, confidence: float = 0.9, **own: torch.Tensor) -> Mixture:
        return Mixture(("a", "b"), torch.tensor([[weight, 0.0]]), own, torch.tensor([confidence]))

    assert mixture() == mixture()
    assert mixture(layer=torch.ones(1, 2)) == mixture(layer=torch.ones(1, 2))
    for other in (mixture(0.4), mixture(confidence=0.8), mixture(layer=torch.ones(1, 2)), Mixture.of({"a": 0.5}), "a"):
        assert mixture() != other


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", '{"weights": 3}', '{"weights": {"a": "much"}}', '{"weights": {"a": null}}'),
        *('{"weights": {"a": "0.5"}}', '{"weights": {"a": true}}', '{"weights": {"a": 1e999}}'),
        '{"weights": {"a": 1}, "per_matrix": {"q": {"a": "1"}}}',
    ],
)
def test_files_that_hold_no_mixture_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "MIX.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a mixture"):
        Mixture.read(path)


def test_weights_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="once"):
        Mixture(("a", "a"), torch.ones(1, 2))
    with pytest.raises(UserError, match=r"weights \[prompts, 1\]"):
        Mixture(("a",), torch.ones(1, 2))
    with pytest.raises(UserError, match="finite"):
        Mixture.of({"a": float("nan")})
    with pytest.raises(UserError, match="the weight of 'a' must be a number, not '1'"):
        Mixture.of({"a": "1"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="finite"):
        Mixture.of({"a": 10**400})
    with pytest.raises(UserError, match="finite"):
        Mixture(("a",), torch.ones(1, 1, dtype=torch.complex64))
    with pytest.raises(UserError, match="same shape"):
        Mixture(("a",), torch.ones(1, 1), {"layer": [[1.0]]})  # type: ignore[dict-item]
    for confidence in (0.5, torch.ones(2)):
        with pytest.raises(UserError, match=r"a mixture for 1 prompts needs a tensor of confidences \[1\]"):
            Mixture(("a",), torch.ones(1, 1), confidence=confidence)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="names of a mixture must be strings, not 'a'"):
        Mixture("a", torch.ones(1, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prompts must be a whole number of 0 or more, not -1"):
        Mixture.of({"a": 1.0}, -1)


@pytest.mark.parametrize("given", [None, [("a", 1.0)], "a", {5: 1.0}])
def test_what_maps_no_experts_to_weights_is_one_line(given: Any) -> None:
    with pytest.raises(UserError, match="a mixture is a mapping of experts to weights"):
        Mixture.of(given)


def test_weights_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(UserError, match="a tensor of weights"):
        Mixture(("a",), [[1.0], [0.0]])  # type: ignore[arg-type]


def test_mixtures_stand_below_each_other() -> None:
    one = Mixture(("a", "b", "c"), torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.0, 1.0]]))
    other = Mixture(("c", "d"), torch.tensor([[0.1, 0.2]]), {"layer": torch.tensor([[0.3, 0.4]])})
    together = Mixture.together([one, Mixture.of({}), other])
    assert [together[row] for row in range(4)] == [one[0], one[1], {}, other[0]]
    own = Mixture(together.names, together.per_matrix["layer"])
    # Where a mixture says nothing of a matrix of its own, its weights hold there.
    assert [own[row] for row in range(3)] == [one[0], one[1], {}]
    assert own[3] == pytest.approx({"c": 0.3, "d": 0.4})
    assert Mixture.together([Mixture.of({}, 2)]).is_base
