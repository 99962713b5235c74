"""The reference code's files, written here as that code writes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experts.exchange.reference_import import import_expert
from experts.expert import Expert
from experts.outside.errors import UserError
from experts.svf import SVFLinear

IDS = torch.arange(3, 23).view(2, 10)


class Policy(nn.Module):
    """`policy/base.py` of the reference: a dict that is not saved, and the same parameters in a list that is."""

    def __init__(self, base_params: dict[str, Tensor], scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learnable_params = {
            k: nn.Parameter((torch.randn(min(v.shape)) * scale + 0.1).bfloat16())
            for k, v in base_params.items()
            if "mlp" in k
        }
        self.learnable_params_module_list = nn.ParameterList(list(self.learnable_params.values()))


def composed(weight: Tensor, p: Tensor) -> Tensor:
    """`compose_new_params` of the reference, in float64."""
    u, s, v = torch.svd(weight.double())
    mm = torch.sigmoid(p.double())
    return (u @ torch.diag_embed(s * mm) @ v.T) * (s.sum() / (s * mm).sum())


@pytest.fixture
def policy(tiny_model: Any) -> Policy:
    return Policy(tiny_model.state_dict(), scale=1.0)


@pytest.mark.parametrize("form", ["policy_params.pt", "learnable_params.pt"])
def test_the_imported_expert_makes_the_same_weights(policy: Policy, tiny_model: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    torch.save(policy.state_dict() if form == "policy_params.pt" else policy.learnable_params, path)
    expert = import_expert(path, tiny_model, "tiny", "Sums.")
    assert len(expert.z) == 6
    model = expert.attach(tiny_model)
    for key, p in policy.learnable_params.items():
        layer = model.base_model.model.get_submodule(key.removesuffix(".weight"))
        assert isinstance(layer, SVFLinear)
        found = layer.merge_delta(layer.delta(["default"]).detach())
        # Directions whose singular values are almost equal are mixed a little by rounding, more on some processors.
        torch.testing.assert_close(found.double(), composed(layer.pristine_weight, p), atol=1e-4, rtol=1e-3)


def test_uniform_p_is_the_base(tiny_model: Any, tmp_path: Path) -> None:
    torch.save(Policy(tiny_model.state_dict(), scale=0.0).state_dict(), tmp_path / "policy_params.pt")
    expert = import_expert(tmp_path / "policy_params.pt", tiny_model, "tiny", "")
    for z in expert.z.values():
        torch.testing.assert_close(z, torch.ones_like(z))


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_in_one_line(tiny_model: Any, tmp_path: Path, by: str) -> None:
    path, victim = tmp_path / "policy_params.pt", tmp_path / "victim"
    if by == "torch":
        torch.save({"learnable_params_module_list.0": Evil(victim)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(victim)))
    with pytest.raises(UserError, match=r"policy_params\.pt was refused: it wants to run code") as refusal:
        import_expert(path, tiny_model, "tiny", "")
    assert "\n" not in str(refusal.value)
    assert not victim.exists()


def test_files_that_are_no_experts_of_this_base_are_refused(policy: Policy, tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "policy_params.pt"
    state = policy.state_dict()
    key = next(iter(state))

    def refused(document: Any, match: str) -> None:
        torch.save(document, path)
        with pytest.raises(UserError, match=match) as refusal:
            import_expert(path, tiny_model, "tiny", "")
        assert "\n" not in str(refusal.value)

    refused({k: v for k, v in state.items() if k != key}, "has 5 vectors, but the base has 6 MLP matrices")
    refused({**state, key: torch.ones(3)}, r"has \[3\] values for model.layers.0.mlp.gate_proj, which has 32")
    refused({**state, key: torch.full((32,), float("nan"))}, "not finite")
    refused({**state, "adaptive_weights": torch.ones(2)}, "it holds adaptive_weights")  # a few-shot mixture
    refused({}, "it holds nothing")
    refused([torch.ones(2)], "file of named tensors")
    torch.save(state, path)
    for data in (b"no file of tensors", b"", path.read_bytes()[:-200]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            import_expert(path, tiny_model, "tiny", "")


@pytest.mark.parametrize(
    "content", [b"", b"q,a\n1+1?,2\n", b"\x00" * 64, b"hello", b"PK\x03\x04", b"(i0\n", b"]q\x00", b"{"]
)
def test_a_file_of_another_kind_is_refused_in_one_line(tiny_model: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"own\.csv") as refusal:
        import_expert(tmp_path / "own.csv", tiny_model, "tiny", "Sums.")
    assert "\n" not in str(refusal.value)


def test_a_matrix_of_zeros_is_imported_as_the_base_has_it(policy: Policy, tiny_model: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.zero_()
    torch.save(policy.state_dict(), tmp_path / "policy_params.pt")
    expert = import_expert(tmp_path / "policy_params.pt", tiny_model, "tiny", "Sums.")
    assert torch.equal(expert.z["model.layers.0.mlp.up_proj"], torch.ones(32))
    expert.write(tmp_path / "expert")
    assert Expert.read(tmp_path / "expert").z.keys() == expert.z.keys()
