"""What `test_kills.py` runs: work that is killed at random moments, and begun again, until it has been killed enough.

`python kills.py WORK FOLDER SEED KILLS` forks a child for each attempt, so that a kill costs no imports. It prints as
JSON how often work was killed and how often it came to its end; what is wrong is an AssertionError.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.outside.files import cache_folder
from experts.svf.decomposition import _read, decompose
from selfadapt.cli import main
from selfadapt.grid.results import read_results

TIMED = {"seconds", "tokens_per_second", "train_seconds", "peak_memory"}


def attempt(work: Callable[[], None], seconds: float | None) -> bool:
    """Runs `work` in a child, which is killed after so many seconds; returns whether it came to its end first."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            work()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "an attempt failed, see above"
    return not os.WIFSIGNALED(status)


def kill_often(
    work: Callable[[], None], look: Callable[[], None], finished: Callable[[], None], chance: random.Random, kills: int
) -> dict[str, int]:
    """Work that is killed `kills` times.

    Args:
        look: whether what an attempt has left behind is whole.
        finished: whether what is there after the end is right; makes room for the work to be done anew.
    """
    begun = time.monotonic()
    assert attempt(work, None)
    longest = time.monotonic() - begun
    finished()
    counts = {"killed": 0, "finished": 1}
    while counts["killed"] < kills:
        done = attempt(work, chance.uniform(0, longest))
        look()
        if not done:
            counts["killed"] += 1
        elif counts["killed"] < kills:
            finished()
            counts["finished"] += 1
    assert attempt(work, None)
    finished()
    return counts


def cli(*args: object) -> None:
    sys.argv = ["selfadapt", *map(str, args)]
    main()


def entries(path: Path) -> list[Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def training(folder: Path, *verb: str) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """A run of `verb`, which goes on wherever it was begun and ends in the same files."""
    output, weights = folder / "runs" / "out", verb[-1]
    first: list[Any] = []

    def work() -> None:
        resume = ["--resume"] if (folder / "runs" / "out.unfinished").exists() else []
        if not output.exists() or resume:
            cli(*verb[:-1], folder / "recipe.yaml", "--output", output, *resume)

    def look() -> None:
        if output.exists() and first:
            assert result() == first[0]

    def result() -> Any:
        return (output / weights).read_bytes(), entries(output / "training_log.jsonl"), visible(output)

    def finished() -> None:
        first.append(result())
        assert first[0] == first[-1], f"{first[0][1:]} is not {first[-1][1:]}"
        assert visible(folder / "runs") == {"out"}
        shutil.rmtree(folder / "runs")

    return work, look, finished


def adding(folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Experts that are added to a library one after the other, and some removed."""
    names = [f"expert{number}" for number in range(6)]
    expert = Expert.read(folder / "expert")
    library = folder / "library"

    def work() -> None:
        if not (library / "library.json").exists():
            ExpertLibrary.create(library, "tiny", str(expert.fingerprint))
        opened = ExpertLibrary.open(library)
        for name in names:
            if name not in opened.names:
                opened.add(folder / "expert", name)
        for name in opened.names[::2]:
            opened.remove(name)
        for name in names:
            if name not in opened.names:
                opened.add(folder / "expert", name)

    def look() -> None:
        if (library / "library.json").exists():
            opened = ExpertLibrary.open(library)
            for name in opened.names:
                assert all(torch.equal(z, expert.z[matrix]) for matrix, z in opened.z(name).items())

    def finished() -> None:
        look()
        assert sorted(ExpertLibrary.open(library).names) == names
        shutil.rmtree(library)

    return work, look, finished


def decomposing(folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Matrices whose singular values are kept in the cache."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(96, 64, generator=generator) for _ in range(24)]
    cache = cache_folder() / "svd"

    def work() -> None:
        for matrix in matrices:
            u, s, vt = decompose(matrix)
            torch.testing.assert_close(u * s @ vt, matrix, atol=1e-4, rtol=0)

    def look() -> None:
        for path in cache.glob("*.safetensors") if cache.exists() else ():
            if not path.name.startswith("."):
                assert _read(path) is not None
        for path in cache.glob("*.lock") if cache.exists() else ():
            FileLock(path, timeout=0).acquire().lock.release()  # nobody keeps it

    def finished() -> None:
        look()
        assert len([path for path in cache.glob("*.safetensors") if not path.name.startswith(".")]) == len(matrices)
        shutil.rmtree(cache)

    return work, look, finished


def comparing(folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """A grid of a few cells."""
    output, first = folder / "grid", []

    def work() -> None:
        resume = ["--resume"] if output.exists() else []
        cli("compare", folder / "grid.yaml", "--output", output, *resume)

    def look() -> None:
        assert not [line.error for line in read_results(output / "results.jsonl") if line.error]

    def finished() -> None:
        lines = entries(output / "results.jsonl")
        first.append(sorted(map(json.dumps, lines)))
        assert first[0] == first[-1]
        assert not list((output / "cells").glob("*.unfinished"))
        shutil.rmtree(output)

    return work, look, finished


def evaluating(folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Two methods on the tasks in a folder."""
    output, first = folder / "runs" / "scores.jsonl", []

    def work() -> None:
        resume = ["--resume"] if output.exists() else []
        asked = ("--model", folder / "base", "--tasks", folder / "tasks", "--methods", "base,description in the prompt")
        cli("t2l", "evaluate", *asked, "--output", output, *resume)

    def look() -> None:
        assert not output.exists() or set(map(json.dumps, entries(output))) <= set(first[0])

    def finished() -> None:
        first.append(sorted(map(json.dumps, entries(output))))
        assert first[0] == first[-1]
        assert visible(output.parent) == {output.name}
        shutil.rmtree(output.parent)

    return work, look, finished


WORK: dict[str, Callable[[Path], Any]] = {
    "train": lambda folder: training(folder, "train", "adapter_model.safetensors"),
    "t2l": lambda folder: training(folder, "t2l", "train", "network.safetensors"),
    "library": adding,
    "decomposition": decomposing,
    "grid": comparing,
    "evaluate": evaluating,
}

if __name__ == "__main__":
    name, folder, seed, kills = sys.argv[1:]
    print(json.dumps(kill_often(*WORK[name](Path(folder)), random.Random(int(seed)), int(kills))))
