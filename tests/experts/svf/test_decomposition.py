"""The cache of decompositions: exact, never stale, never computed twice, and mended when damaged."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from experts.outside.errors import UserError
from experts.svf import decomposition
from experts.svf.decomposition import decompose, each_matrix


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path))
    return tmp_path / "svd"


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every decomposition that is really computed."""
    computed: list[int] = []
    svd = decomposition._svd
    monkeypatch.setattr(decomposition, "_svd", lambda weight: computed.append(1) or svd(weight))
    return computed


def weight(seed: int = 0, shape: tuple[int, int] = (6, 4)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_factors_compose_to_the_weight(cache: Path, shape: tuple[int, int]) -> None:
    w = weight(shape=shape)
    for _ in range(2):  # computed, then read
        u, s, vt = decompose(w)
        torch.testing.assert_close(u @ torch.diag(s) @ vt, w)
        assert torch.equal(s, s.sort(descending=True).values)


@pytest.mark.parametrize("rank", [None, 2])
def test_computed_factors_lie_in_memory_as_those_that_are_read(cache: Path, count: list[int], rank: int | None) -> None:
    computed, read = (decompose(weight(shape=(32, 48)), rank) for _ in range(2))
    assert len(count) == 1
    for tensor, other in zip(computed, read, strict=True):
        assert torch.equal(tensor, other)
        assert tensor.stride() == other.stride()


def test_rank_takes_the_largest_values_from_the_same_file(cache: Path, count: list[int]) -> None:
    w = weight()
    full, part = decompose(w), decompose(w, rank=2)
    assert torch.equal(part.u, full.u[:, :2])
    assert torch.equal(part.s, full.s[:2])
    assert torch.equal(part.vt, full.vt[:2])
    assert all(tensor.is_contiguous() for tensor in part)
    assert len(count) == 1


def test_the_cache_is_exact_and_used(cache: Path, count: list[int]) -> None:
    first, second = decompose(weight()), decompose(weight())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(count) == 1


def test_any_changed_bit_is_another_matrix(cache: Path, count: list[int]) -> None:
    w = weight()
    decompose(w)
    w[3, 2] = torch.nextafter(w[3, 2], torch.tensor(10.0))
    decompose(w)
    decompose(w.reshape(4, 6))
    decompose(w.bfloat16())
    assert len(count) == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "not safetensors"])
def test_a_damaged_file_is_rebuilt(
    cache: Path, count: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = decompose(weight())
    (path,) = cache.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[-5] ^= 1
    path.write_bytes({"truncated": data[:-7], "empty": b"", "not safetensors": b"hello"}.get(damage, bytes(data)))
    again = decompose(weight())
    assert "damaged" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))
    decompose(weight())
    assert len(count) == 2  # rebuilt once, then read


def _decompose_in_child(folder: str, counter: multiprocessing.sharedctypes.Synchronized) -> None:  # type: ignore[name-defined]
    import os

    os.environ["SELFADAPT_CACHE"] = folder
    svd = decomposition._svd

    def counted(w: torch.Tensor) -> decomposition.Factors:
        with counter.get_lock():
            counter.value += 1
        return svd(w)

    decomposition._svd = counted
    decompose(weight(shape=(300, 200)))


@pytest.mark.long
def test_two_processes_decompose_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    children = [context.Process(target=_decompose_in_child, args=(str(tmp_path), counter)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert counter.value == 1


def test_a_weight_without_finite_values_is_refused(cache: Path) -> None:
    w = weight()
    w[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        decompose(w)
    with pytest.raises(ValueError, match="not loaded"):
        decompose(w.to("meta"))


def test_the_factors_keep_the_weights_dtype_and_s_is_precise(cache: Path) -> None:
    u, s, vt = decompose(weight().bfloat16())
    assert (u.dtype, s.dtype, vt.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_each_matrix_keeps_the_order_and_gives_the_threads_back(cache: Path) -> None:
    threads = torch.get_num_threads()
    matrices = [weight(seed) for seed in range(5)]
    spectra = each_matrix(lambda w: decompose(w).s, matrices, torch.device("cpu"))
    assert all(torch.equal(s, decompose(w).s) for s, w in zip(spectra, matrices, strict=True))
    with pytest.raises(ValueError, match="NaN"):
        each_matrix(decompose, [weight() * float("nan")], torch.device("cpu"))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("trouble", ["a file", "unwritable"])
def test_without_a_cache_it_decomposes_each_time_and_says_so_once(
    trouble: str, count: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    if trouble == "a file":
        folder.touch()
    else:
        folder = Path("/proc/cache")  # not even root can make it
    monkeypatch.setenv("SELFADAPT_CACHE", str(folder))
    for _ in range(2):
        u, s, vt = decompose(weight())
        torch.testing.assert_close(u @ torch.diag(s) @ vt, weight())
    assert len(count) == 2
    assert caplog.text.count("decomposed again at every start") == 1
