"""A grid in shares: together they are the grid, none needs another's results, and they may run side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experts.outside.errors import UserError
from selfadapt.grid import cells
from selfadapt.grid.cells import TrainedCell
from selfadapt.grid.experiment import Experiment, read_experiment
from selfadapt.grid.report import write_report
from selfadapt.grid.results import Line, all_results, read_results
from selfadapt.grid.run import run_experiment
from selfadapt.grid.shares import Share


@pytest.fixture
def path(recipe: Path, tmp_path: Path) -> Path:
    numbers = yaml.safe_load(recipe.read_text())
    next_token = {"objective": "next_token", "sequences_per_step": 4}
    numbers["training"].update(steps=1, prompts_per_step=2, validation_size=2, learning_rate=0.05)
    lora = {
        "adapt": {"method": "lora", "rank": 2},
        "training": {**next_token, "learning_rate": [0.01, 0.05]},
        "seeds": [0, 1],
    }
    document = {
        "domains": {"numbers": numbers},
        "methods": {"svf": {"training": next_token}, "lora": lora},
        "quick": {"methods": {"svf": None}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def untimed(line: Line) -> Line:
    return replace(line, train_seconds=0.0, peak_memory=None)


def timeless(lines: list[Line]) -> list[Line]:
    return sorted(map(untimed, lines), key=repr)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shares_are_a_partition_that_no_choice_of_a_rate_crosses(data: st.DataObject, recipe: Path) -> None:
    domain = {**yaml.safe_load(recipe.read_text()), "test_size": 4}
    rates = st.lists(st.sampled_from([0.01, 0.02, 0.05]), min_size=1, max_size=3, unique=True)
    seeds = st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)
    methods = {
        f"m{i}": {"training": {"learning_rate": data.draw(rates)}, "seeds": data.draw(seeds)}
        for i in range(data.draw(st.integers(1, 4)))
    }
    grid = recipe.with_name("any.yaml")
    grid.write_text(yaml.safe_dump({"domains": {"a": domain, "b": domain}, "methods": methods}))
    cells = read_experiment(grid).cells
    count = data.draw(st.integers(1, 12))
    shares = [Share(index + 1, count).of(cells) for index in range(count)]
    names = [[cell.name for cell in share] for share in shares]
    assert sorted(name for share in names for name in share) == sorted(cell.name for cell in cells)
    order = [cell.name for cell in cells]
    assert all(share == sorted(share, key=order.index) for share in names)
    for share in shares:
        for cell in share:
            if isinstance(cell, TrainedCell) and cell.is_needed([]) is None:
                first = {
                    each.learning_rate
                    for each in share
                    if isinstance(each, TrainedCell)
                    and (each.method, each.trained_on, each.seed) == (cell.method, cell.trained_on, cell.first_seed)
                }
                assert first == cell.rates  # all that choose its rate are in its own share


def test_cells_that_need_nobody_are_dealt_out_evenly(recipe: Path) -> None:
    domain = yaml.safe_load(recipe.read_text())
    grid = recipe.with_name("even.yaml")
    methods = {"svf": {"training": {"learning_rate": 0.01}, "seeds": [0, 1, 2, 3, 4, 5]}}
    grid.write_text(yaml.safe_dump({"domains": {"a": domain, "b": domain}, "methods": methods}))
    cells = read_experiment(grid).cells
    assert sorted(len(Share(index, 4).of(cells)) for index in (1, 2, 3, 4)) == [3, 3, 4, 4]
    assert [len(Share(index, 10**9).of(cells)) for index in (1, 14, 15, 10**9)] == [1, 1, 0, 0]


@pytest.mark.long
def test_shares_one_after_another_are_the_whole_grid(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = read_experiment(path)
    whole, parts = tmp_path / "whole" / "results.jsonl", tmp_path / "parts" / "results.jsonl"
    lines = run_experiment(experiment, whole.parent, resume=False)
    run: list[Line] = []
    for index in (3, 2, 4):  # the base's own cell is not the first, and the last share has none
        own = run_experiment(experiment, parts.parent, resume=False, share=Share(index, 4))
        assert not {line.cell for line in own} & {line.cell for line in run}
        run += own
    assert not parts.exists()
    with monkeypatch.context() as patch:

        def crash(*_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

        patch.setattr(cells, "train_recipe", crash)
        failed = run_experiment(experiment, parts.parent, resume=False, share=Share(1, 4))
    assert {line.error for line in failed} == {"RuntimeError: out of memory"}
    assert "failed: RuntimeError: out of memory" in " ".join(capsys.readouterr().err.split())
    run += run_experiment(experiment, parts.parent, resume=False, share=Share(1, 4))  # tries again what failed
    assert timeless(run) == timeless(lines) == timeless(all_results(parts))
    with pytest.raises(UserError, match=r"has results of lora/numbers/.* already; resume them"):
        run_experiment(experiment, parts.parent, resume=False, share=Share(1, 4))

    # The file in the end is that of one machine, with its lines in their order; nothing is run for it.
    monkeypatch.setattr(cells, "load_base", lambda *_, **__: pytest.fail("a cell is run again"))
    assert timeless(run_experiment(experiment, parts.parent, resume=True)) == timeless(lines)
    assert [untimed(line) for line in read_results(parts)] == [untimed(line) for line in read_results(whole)]
    assert not list((parts.parent / "cells").glob("*.jsonl"))


@pytest.mark.long
def test_shares_side_by_side_and_a_report_of_all(path: Path, tmp_path: Path, run: Any) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "selfadapt.cli", "compare", str(path), "--output", str(output), "--json"]
    jobs = [
        subprocess.Popen([*command, "--quick", "--cells", f"{index}/2"], stdout=subprocess.PIPE, text=True)
        for index in (1, 2)
    ]
    documents = [json.loads(job.communicate()[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert [document["cells"] for document in documents] == [["base/numbers"], ["svf/numbers/lr0.05/seed0"]]
    left = all_results(output / "results.jsonl")
    assert {path.name for path in output.iterdir()} == {"cells"}  # no file that two jobs would write
    code, out, err = run("compare", path, "--quick", "--output", output, "--resume", "--json")
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)["rows"]} == {"base", "svf"}
    assert sorted(read_results(output / "results.jsonl"), key=repr) == sorted(left, key=repr)  # nothing was left to do
    assert (output / "report.md").exists()


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("2", "--cells takes I/N"),
        ("0/2", "the number of a share must be a whole number from 1 to 2, not 0"),
        ("3/2", "the number of a share must be a whole number from 1 to 2, not 3"),
        ("1/0", "the number of shares must be a whole number of 1 or more, not 0"),
        ("-1/2", "--cells takes I/N"),
        ("", "--cells takes I/N"),
    ],
)
def test_a_share_that_there_is_not_is_one_line(path: Path, tmp_path: Path, run: Any, cells: str, said: str) -> None:
    code, out, err = run("compare", path, "--output", tmp_path / "out", f"--cells={cells}")
    assert (code, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ray_that_there_is_not_and_ray_with_shares_are_one_line(
    path: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "selfadapt.grid.on_ray", raising=False)
    for options, said in (
        (("--on", "ray"), "--on ray needs Ray, which is not installed: pip install 'selfadapt[ray]'"),
        (("--on", "ray", "--cells", "1/2"), "--on ray for one; give only one of them"),
    ):
        code, out, err = run("compare", path, "--output", tmp_path / "out", *options)
        assert (code, out) == (1, "")
        assert said in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_results_have_a_folder_of_their_own(
    path: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("compare", path, "--quick", "--output", ".")
    assert (code, out) == (1, "")
    assert (
        err == "error: . holds things other than results, such as grid.yaml; name a new folder, or one with results\n"
    )
    assert sorted(tmp_path.rglob("*")) == before

    # A folder of results may hold what else it likes, and whatever a grid has begun is one.
    (tmp_path / "own" / "cells").mkdir(parents=True)
    grid: Experiment = read_experiment(path, quick=True)
    run_experiment(grid, tmp_path / "own", resume=False)
    (tmp_path / "own" / "notes.txt").touch()
    run_experiment(grid, tmp_path / "own", resume=True)
    results = tmp_path / "own" / "results.jsonl"
    write_report(results, tmp_path / "own")
    with pytest.raises(UserError, match="holds things other than results"):
        write_report(results, tmp_path)
    for _ in range(2):
        write_report(results, tmp_path / "reports")
