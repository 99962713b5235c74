"""The largest triplets without the others: those of the full decomposition, and kept by rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experts.svf import decomposition
from experts.svf.decomposition import Factors, _checksum, decompose
from experts.svf.truncated import largest_triplets

SHAPES = [(300, 200), (200, 300), (200, 200)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, steps of 4 and 8 singular values, and truncation from small matrices on."""
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(decomposition, "FIRST", 4)
    return tmp_path / "svd"


def decaying(shape: tuple[int, int], power: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * torch.arange(1.0, shape[1] + 1).pow(-power)


def largest(weight: torch.Tensor, rank: int, known: Factors | None = None) -> Factors:
    m, n = weight.shape
    known = known or Factors(weight.new_zeros(m, 0), weight.new_zeros(0), weight.new_zeros(0, n))
    return Factors(*largest_triplets(weight, rank, *known))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_triplets_are_those_of_the_full_decomposition(shape: tuple[int, int]) -> None:
    w = decaying(shape)
    u, s, vt = largest(w, 12)
    full_u, full_s, full_vt = torch.linalg.svd(w.double(), full_matrices=False)
    torch.testing.assert_close(s.double(), full_s[:12], rtol=1e-5, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(vt @ vt.T, torch.eye(12), rtol=0, atol=1e-5)
    assert ((w.T @ u - vt.T * s).norm(dim=0) <= 2e-4 * s).all()
    wanted = (full_u[:, :12] * full_s[:12]) @ full_vt[:12]
    assert ((u * s) @ vt - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["zero", "low rank", "equal values"])
def test_matrices_without_gaps_have_orthonormal_vectors(shape: tuple[int, int], kind: str) -> None:
    low = decaying((shape[0], 5)) @ decaying((5, shape[1]))
    w = {"zero": torch.zeros(shape), "low rank": low, "equal values": torch.eye(*shape)}[kind]
    u, s, vt = largest(w, 40)
    torch.testing.assert_close(u.T @ u, torch.eye(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(vt @ vt.T, torch.eye(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(s, torch.linalg.svdvals(w)[:40], rtol=1e-4, atol=1e-4)


def test_more_triplets_leave_the_first_as_they_are() -> None:
    w = decaying((300, 200))
    first = largest(w, 8)
    u, s, vt = largest(w, 24, first)
    assert torch.equal(u[:, :8], first.u)
    assert torch.equal(s[:8], first.s)
    assert torch.equal(vt[:8], first.vt)
    assert (s.diff() <= 0).all()
    torch.testing.assert_close(s, torch.linalg.svdvals(w)[:24], rtol=1e-5, atol=0)


def test_it_neither_takes_from_nor_depends_on_the_global_generator() -> None:
    w = decaying((300, 200))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = largest(w, 8)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, largest(w, 8), strict=True))


@pytest.mark.parametrize("order", [(3, 8), (8, 3)])
def test_the_cache_keeps_what_was_asked_for_and_is_extended(cache: Path, order: tuple[int, int]) -> None:
    w = decaying((200, 160))
    asked = {rank: decompose(w, rank) for rank in order}
    (path,) = cache.glob("*.safetensors")
    assert sum(len(t) for name, t in load_file(path).items() if name.startswith("s.")) == 8
    # Whichever was first, they are the same triplets bit for bit, and from the file as computed.
    assert all(torch.equal(a, b) for a, b in zip(asked[3], decompose(w, 3), strict=True))
    assert torch.equal(asked[8].u[:, :3], asked[3].u)
    assert torch.equal(asked[8].vt[:3], asked[3].vt)
    again = decompose(w, 8)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(asked[8], again, strict=True))


def test_all_singular_values_replace_the_first(cache: Path) -> None:
    w = decaying((200, 160))
    few = decompose(w, 4)
    u, s, vt = decompose(w)
    assert len(s) == 160
    torch.testing.assert_close((u * s) @ vt, w, rtol=0, atol=1e-5)
    torch.testing.assert_close(few.s, s[:4], rtol=1e-5, atol=0)
    assert ((few.vt * vt[:4]).sum(1) > 0.999).all()  # the same signs


def test_a_small_rank_reads_its_own_part_alone(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    w = decaying((40, 30))
    whole = decompose(w)
    (path,) = cache.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    at = data.find(whole.vt[20:21].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    assert torch.equal(decompose(w, 4).vt, whole.vt[:4])
    assert "damaged" not in caplog.text
    assert torch.equal(decompose(w).vt, whole.vt)
    assert "damaged" in caplog.text


@pytest.mark.parametrize("rank", [4, None])
def test_files_without_parts_are_used(cache: Path, rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    w = decaying((200, 160))
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    old = Factors(u.contiguous(), s, vt.contiguous())
    cache.mkdir()
    path = cache / f"{decomposition._key(w)}.safetensors"
    save_file(old._asdict(), path, metadata={"sha256": _checksum(old)})
    monkeypatch.setattr(decomposition, "_largest", None)  # nothing is computed
    for _ in range(2):
        found = decompose(w, rank)
        assert torch.equal(found.u, old.u[:, :rank])
        assert torch.equal(found.s, old.s[:rank])
        assert torch.equal(found.vt, old.vt[:rank])
