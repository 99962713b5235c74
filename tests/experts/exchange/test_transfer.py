"""An expert on another base: what is recorded, what the control is, and when two bases are comparable."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experts import Expert, ExpertLibrary
from experts.exchange.transfer import Comparison, check_shapes, compare_bases, transfer
from experts.expert import read_config
from experts.library import load_expert
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint

UP = "model.layers.0.mlp.up_proj"
MATRICES = (UP, "model.layers.1.self_attn.k_proj")


@pytest.fixture
def expert(tiny_model: Any) -> Expert:
    z = {matrix: torch.linspace(0.5, 1.5, 12) for matrix in MATRICES}
    return Expert(z, "tiny", fingerprint(tiny_model), "Sums.")


def changed(base: Any, noise: float) -> Any:
    other = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for matrix in MATRICES:
            weight = other.get_submodule(matrix).weight
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    return other


def test_a_transferred_expert_is_one_of_the_other_base_and_says_where_it_comes_from(
    expert: Expert, tiny_model: Any, tmp_path: Path
) -> None:
    other = changed(tiny_model, 0.1)
    transfer(expert, other, "other").write(tmp_path / "sums")
    found, there = fingerprint(tiny_model), fingerprint(other)
    config = read_config(tmp_path / "sums")
    assert (config.base_model_name_or_path, config.base_fingerprint) == ("other", there)
    assert config.transferred_from == f"tiny ({found})"
    assert config.description == "Sums."
    card = (tmp_path / "sums" / "README.md").read_text()
    assert found in card
    assert there in card
    library = ExpertLibrary.create(tmp_path / "library", "other", there)
    library.add(tmp_path / "sums")
    assert "sums" in library.load(copy.deepcopy(other)).peft_config
    with pytest.raises(UserError, match=rf"{there}.*{found}"):
        load_expert(tiny_model, tmp_path / "sums")
    # Further on its way, or in a sum, it still says where it was trained.
    again = transfer(Expert.read(tmp_path / "sums"), changed(tiny_model, 0.2), "third")
    assert again.transferred_from == (0.5 * again + again).transferred_from == f"tiny ({found})"


def test_the_shuffled_control_permutes_z_within_each_matrix(expert: Expert, tiny_model: Any) -> None:
    other = changed(tiny_model, 0.1)
    shuffled = transfer(expert, other, "other", shuffled=0)
    for matrix, z in expert.z.items():
        assert not torch.equal(shuffled.z[matrix], z)
        assert torch.equal(shuffled.z[matrix].sort().values, z.sort().values)
    assert not torch.equal(shuffled.z[MATRICES[0]], shuffled.z[MATRICES[1]])
    assert "shuffled" in shuffled.description
    again, another = transfer(expert, other, "other", shuffled=0), transfer(expert, other, "other", shuffled=1)
    assert torch.equal(again.z[UP], shuffled.z[UP])
    assert not torch.equal(another.z[UP], shuffled.z[UP])
    transfer(expert, tiny_model, "tiny", shuffled=0)  # the control on the expert's own base


def by_matrix(comparisons: list[Comparison]) -> dict[str, Comparison]:
    return {comparison.matrix: comparison for comparison in comparisons}


def test_a_base_is_comparable_to_itself_less_to_a_noisy_copy_and_not_to_a_stranger(
    expert: Expert, tiny_model: Any
) -> None:
    itself = by_matrix(compare_bases(expert, tiny_model, tiny_model, k=4))[UP]
    assert (itself.aligned, itself.overlap, itself.difference) == pytest.approx((1, 1, 1), abs=1e-5)
    assert itself.spectrum == 0
    assert itself.chance == (4 / 48 + 4 / 32) / 2
    near = by_matrix(compare_bases(expert, tiny_model, changed(tiny_model, 0.03), k=4))[UP]
    assert 0.5 < near.aligned < 0.999
    assert 0.5 < near.difference < 0.999
    assert 0 < near.spectrum < 0.1
    stranger = by_matrix(compare_bases(expert, tiny_model, changed(tiny_model, 100.0), k=4))[UP]
    assert stranger.aligned < 0.2
    assert abs(stranger.difference) < 0.5
    assert stranger.overlap < 4 * stranger.chance < near.overlap


def test_figures_are_those_of_the_matrices_themselves(expert: Expert, tiny_model: Any) -> None:
    """W' has W's directions in another order, and other singular values."""
    u, s, vt = torch.linalg.svd(tiny_model.get_submodule(UP).weight.detach(), full_matrices=False)
    order = torch.arange(len(s))
    order[:2] = torch.tensor([1, 0])
    other = copy.deepcopy(tiny_model)
    other.get_submodule(UP).weight.data = u[:, order] @ torch.diag(2 * s) @ vt[order]
    found = by_matrix(compare_bases(expert, tiny_model, other, k=2))[UP]
    energy = s[:12].square()
    assert found.aligned == pytest.approx((1 - energy[:2].sum() / energy.sum()).item(), abs=1e-4)
    assert found.overlap == pytest.approx(1, abs=1e-4)
    assert found.spectrum == pytest.approx(1, abs=1e-4)
    delta = expert.z[UP] - 1
    ours = u[:, :12] @ torch.diag(s[:12] * delta) @ vt[:12]
    theirs = u[:, order][:, :12] @ torch.diag(2 * s[:12] * delta) @ vt[order][:12]
    cosine = (ours * theirs).sum() / ours.norm() / theirs.norm()
    assert found.difference == pytest.approx(cosine.item(), abs=1e-4)


def test_what_cannot_be_transferred_is_refused(expert: Expert, tiny_model: Any) -> None:
    with pytest.raises(UserError, match="belongs to this base already"):
        transfer(expert, tiny_model, "tiny")
    smaller = copy.deepcopy(tiny_model)
    smaller.get_submodule(UP).weight.data = torch.ones(8, 32)
    with pytest.raises(UserError, match="has 12 values"):
        transfer(expert, smaller, "smaller")
    wider = copy.deepcopy(tiny_model)
    wider.get_submodule(UP).weight.data = torch.randn(64, 32)
    with pytest.raises(UserError, match=r"shapes \[48, 32\] and \[64, 32\]"):
        compare_bases(expert, tiny_model, wider)
    with pytest.raises(UserError, match="only between matrices of the same shape"):
        check_shapes(expert, tiny_model.to("meta"), wider)
    del wider.model.layers[1]
    with pytest.raises(UserError, match="not a linear layer of the base"):
        transfer(expert, wider, "wider")


def test_a_matrix_of_zeros_is_left_out_of_the_comparison(expert: Expert, tiny_model: Any) -> None:
    (whole,) = [row for row in compare_bases(expert, tiny_model, changed(tiny_model, 0.1)) if row.matrix != UP]
    other = changed(tiny_model, 0.1)
    with torch.no_grad():
        tiny_model.get_submodule(UP).weight.zero_()
    assert compare_bases(expert, tiny_model, other) == [whole]
    with torch.no_grad():
        other.get_submodule(whole.matrix).weight.zero_()
    (row,) = compare_bases(expert, tiny_model, other)
    assert all(math.isfinite(value) for value in (row.aligned, row.overlap, row.spectrum, row.difference))
    with torch.no_grad():
        tiny_model.get_submodule(whole.matrix).weight.zero_()
    with pytest.raises(UserError, match="nothing to compare"):
        compare_bases(expert, tiny_model, other)
