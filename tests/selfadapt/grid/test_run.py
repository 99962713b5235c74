"""A grid from start to end on a tiny base: cells, failures, resume, sharing, and a report from the file alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from peft import AutoPeftModelForCausalLM

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.network import SvfOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter
from selfadapt.cli import main
from selfadapt.grid import cells, run
from selfadapt.grid.experiment import Experiment, read_experiment
from selfadapt.grid.report import page, write_report
from selfadapt.grid.results import Line, add_results, chosen_rate, read_results
from selfadapt.grid.rows import make_rows
from selfadapt.grid.run import run_experiment


@pytest.fixture
def document(recipe: Path) -> dict[str, Any]:
    numbers = yaml.safe_load(recipe.read_text())
    numbers["training"].update(steps=1, prompts_per_step=2, validation_size=2, learning_rate=0.05)
    letters = {**numbers, "domain": {**numbers["domain"], "dataset": "letter_counting", "name": "letters"}}
    next_token = {"objective": "next_token", "sequences_per_step": 4}
    return {
        "domains": {"numbers": numbers},
        "unseen": {"letters": letters},
        "methods": {
            "svf": {"training": next_token},
            "lora": {
                "adapt": {"method": "lora", "rank": 2},
                "training": {**next_token, "learning_rate": [0.01, 0.05]},
                "seeds": [0, 1],
                "reference": True,
            },
        },
        "quick": {"methods": {"svf": None}},
    }


@pytest.fixture
def path(document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def experiment(path: Path) -> Experiment:
    return read_experiment(path)


@pytest.fixture
def quick(path: Path) -> Experiment:
    """The bases and one cell of SVF."""
    return read_experiment(path, quick=True)


@pytest.fixture
def dispatched(
    document: dict[str, Any], library: ExpertLibrary, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> Experiment:
    """The bases, four dispatchers on the unseen domain, and one cell of LoRA."""
    output = SvfOutput(rank=8)
    matrices = read_matrices(tiny_model.config, output.target_modules)
    encoder = LastTokenEncoder(tiny_model, tiny_tokenizer)
    network = TextToAdapter.untrained(output, matrices, encoder, fingerprint=library.fingerprint)
    network.save_pretrained(library.folder / "t2l")
    lora = {"training": {"learning_rate": 0.05}, "seeds": [0]}
    document["quick"] = {"methods": {"lora": lora}}
    document |= {"dispatchers": ["prompt", "a", "t2l", "few-shot"], "library": str(library.folder)}
    path = tmp_path / "dispatched.yaml"
    path.write_text(yaml.safe_dump(document))
    return read_experiment(path, quick=True)


def timeless(lines: list[Line]) -> list[Line]:
    return sorted((replace(line, train_seconds=0.0, peak_memory=None) for line in lines), key=lambda line: repr(line))


@pytest.mark.long
def test_a_grid_from_start_to_end(experiment: Experiment, tmp_path: Path) -> None:
    output = tmp_path / "out"
    lines = run_experiment(experiment, output, resume=False)
    assert lines == read_results(output / "results.jsonl")
    chosen = chosen_rate([line for line in lines if line.method == "lora"])
    cells = {"base/numbers", "base/letters", "svf/numbers/lr0.05/seed0", f"lora/numbers/lr{chosen:g}/seed1"}
    cells |= {"lora/numbers/lr0.01/seed0", "lora/numbers/lr0.05/seed0"}
    assert {line.cell for line in lines} == cells  # the other rate gets no second seed
    trained = [line for line in lines if line.trained_on]
    assert len(trained) == 2 * 4  # on its own domain and the unseen one
    assert all(
        line.n == 4 and set(line.scores) <= {"0", "1"} and line.right == line.scores.count("1") for line in lines
    )
    assert len({line.items for line in lines}) == len({line.evaluated_on for line in lines}) == 2
    assert len({line.fingerprint for line in lines}) == 1
    assert {(line.adapter, line.objective) for line in trained} == {("svf", "next_token"), ("lora", "next_token")}
    assert all(line.parameters and line.best_step == 1 and line.peak_memory for line in trained)
    adapter = output / "cells" / "svf--numbers--lr0.05--seed0"
    AutoPeftModelForCausalLM.from_pretrained(str(adapter))

    # Nothing is left to do, and the file alone gives the same tables and plots.
    before = (output / "results.jsonl").read_text()
    assert run_experiment(experiment, output, resume=True) == lines
    assert (output / "results.jsonl").read_text() == before
    rows = write_report(output / "results.jsonl", output)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(output / "results.jsonl", elsewhere / "results.jsonl")
    assert write_report(elsewhere / "results.jsonl", elsewhere) == rows
    assert (elsewhere / "report.md").read_text() == (output / "report.md").read_text()
    for name in ("accuracy.png", "gain.png"):
        assert (elsewhere / name).read_bytes() == (output / name).read_bytes()

    with pytest.raises(UserError, match="exists already; resume it, or choose another folder"):
        run_experiment(experiment, output, resume=False)
    other = replace(experiment, cells=[replace(cell, settings="other") for cell in experiment.cells])
    with pytest.raises(UserError, match="with other settings"):
        run_experiment(other, output, resume=True)


@pytest.mark.long
def test_a_cell_whose_line_is_gone_is_done_again_to_the_same_result(quick: Experiment, tmp_path: Path) -> None:
    results = tmp_path / "out" / "results.jsonl"
    lines = run_experiment(quick, tmp_path / "out", resume=False)
    kept = [text for text in results.read_text().splitlines() if '"svf"' not in text or '"letters"' not in text]
    assert len(kept) == len(lines) - 1
    results.write_text("".join(text + "\n" for text in kept))
    again = run_experiment(quick, tmp_path / "out", resume=True)
    assert timeless(again) == timeless(lines)
    assert len(read_results(results)) == len(lines)


@pytest.mark.long
def test_a_killed_cell_leaves_no_lines_and_goes_on(
    quick: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_experiment(quick, tmp_path / "whole", resume=False)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experts.training.expert.plot_curve", killed)  # the training is done, its result is not
        with pytest.raises(KeyboardInterrupt):
            run_experiment(quick, tmp_path / "parts", resume=False)
    assert {line.method for line in read_results(tmp_path / "parts" / "results.jsonl")} == {"base"}
    with monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer.train", killed)  # no step is made twice
        parts = run_experiment(quick, tmp_path / "parts", resume=True)
    assert timeless(parts) == timeless(whole)


@pytest.mark.long
def test_a_failed_cell_is_reported_and_the_grid_goes_on(
    quick: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    svf = quick.cells[-1]
    experiment = replace(quick, cells=[*quick.cells[:2], svf, replace(svf, method="svf2")])
    train = cells.train_recipe
    calls: list[Any] = []

    def crash_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return crash() if len(calls) == 1 else train(*args, **kwargs)

    monkeypatch.setattr(cells, "train_recipe", crash_once)
    lines = run_experiment(experiment, tmp_path / "out", resume=False)
    assert [(line.cell, line.error) for line in lines if line.error] == [(svf.name, "RuntimeError: out of memory")]
    assert "failed: RuntimeError: out of memory" in " ".join(capsys.readouterr().err.split())
    assert {line.method for line in lines if not line.error} == {"base", "svf2"}
    write_report(tmp_path / "out" / "results.jsonl", tmp_path / "out")
    assert f"- {svf.name}: RuntimeError: out of memory" in (tmp_path / "out" / "report.md").read_text()
    # A new start tries it again, and what it makes takes the place of the failure.
    again = run_experiment(experiment, tmp_path / "out", resume=True)
    assert not any(line.error for line in again)
    assert len(again) == 2 + 2 * 2


def test_a_base_that_is_not_there_stops_the_grid_before_its_cells(path: Path, tmp_path: Path) -> None:
    for missing in ("nosuch", str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=r"nosuch|nowhere"):
            run_experiment(read_experiment(path, quick=True, model=missing), tmp_path / "out", resume=False)
        assert read_results(tmp_path / "out" / "results.jsonl") == []


def test_a_command_that_is_corrected_runs_what_failed_in_the_same_folder(
    quick: Experiment, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("experts.training.expert.plot_curve", crash)  # an unfinished run is left, too
        patch.setattr(cells.Evaluation, "scores", crash)
        assert all(line.error for line in run_experiment(quick, output, resume=False))
    assert [*(output / "cells").glob("*.unfinished")]
    document["recipe"] = {"test_size": 3}
    document["methods"]["svf"]["training"] |= {"micro_batch_size": 2}
    corrected = tmp_path / "corrected.yaml"
    corrected.write_text(yaml.safe_dump(document))
    lines = run_experiment(read_experiment(corrected, quick=True), output, resume=False)
    assert [line.error for line in lines] == [None] * 4
    assert {line.n for line in lines} == {3}


def test_a_cell_that_another_process_has_is_left_to_it(
    quick: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "POLL", 0.01)
    output = tmp_path / "out"
    theirs = run_experiment(quick, tmp_path / "theirs", resume=False)
    begun: list[str] = []
    run_cell = run.run_cell
    monkeypatch.setattr(run, "run_cell", lambda cell, *args: begun.append(cell.name) or run_cell(cell, *args))
    (output / "cells").mkdir(parents=True)
    got: list[Line] = []
    with FileLock(output / "cells" / ".svf--numbers--lr0.05--seed0.lock"):
        thread = threading.Thread(target=lambda: got.extend(run_experiment(quick, output, resume=True)))
        thread.start()
        while len(read_results(output / "results.jsonl")) < 2:
            assert thread.is_alive()
            time.sleep(0.01)
        time.sleep(0.1)
        assert thread.is_alive()  # it waits for the cell
        add_results(output / "results.jsonl", [line for line in theirs if line.method == "svf"])
    thread.join()
    assert sorted(begun) == ["base/letters", "base/numbers"]
    assert timeless(got) == timeless(theirs)


@pytest.mark.long
def test_dispatchers_answer_the_same_items_of_unseen_domains(dispatched: Experiment, tmp_path: Path) -> None:
    output = tmp_path / "out"
    lines = run_experiment(dispatched, output, resume=False)
    names = {"prompt/letters", "a/letters", "t2l/letters", "few-shot/letters"}
    assert names < {line.cell for line in lines}
    by_cell = {(line.cell, line.evaluated_on): line for line in lines}
    own = {name: by_cell[name, "letters"] for name in names}
    base = by_cell["base/letters", "letters"]
    assert all((line.items, line.n, line.fingerprint) == (base.items, 4, base.fingerprint) for line in own.values())
    assert own["a/letters"].mixture == {"a": 1.0}
    assert sum((own["prompt/letters"].mixture or {}).values()) == pytest.approx(1)
    assert set(own["few-shot/letters"].mixture or {}) == {"a", "b"}
    assert own["few-shot/letters"].train_seconds > 0
    assert own["t2l/letters"].mixture == {"written": 1.0}
    assert own["t2l/letters"].scores == base.scores  # an untrained network writes the identity

    # A cell that is gone is done again, and alone, to the same mixture.
    results = output / "results.jsonl"
    results.write_text("".join(t + "\n" for t in results.read_text().splitlines() if '"few-shot"' not in t))
    assert timeless(run_experiment(dispatched, output, resume=True)) == timeless(lines)

    rows = {row.method: row for row in write_report(results, output) if row.evaluated_on == "letters"}
    assert all(set(rows[name].against) == {"base", "lora (numbers)"} for name in ("prompt", "a", "few-shot"))
    assert rows["a"].against["base"].points == pytest.approx(rows["a"].accuracy - rows["base"].accuracy)
    assert rows["few-shot"].mixture == own["few-shot/letters"].mixture
    assert "| letters | a | 1.00 |" in (output / "report.md").read_text()
    assert (output / "weights.png").stat().st_size > 0


def test_lines_say_of_a_mixture_only_where_there_is_one(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    lines = [line("base", "01"), line("few-shot", "10", trained_on=None, learning_rate=None, mixture={"a": -0.5})]
    add_results(results, lines)
    assert ["mixture" in json.loads(text) for text in results.read_text().splitlines()] == [False, True]
    assert read_results(results) == lines


def test_only_some_cells(experiment: Experiment, tmp_path: Path) -> None:
    lines = run_experiment(experiment, tmp_path / "out", resume=False, only="lora/*/lr0.01/seed1")
    assert {line.cell for line in lines} == {"lora/numbers/lr0.01/seed1"}
    with pytest.raises(UserError, match="no cell matches 'ia3/\\*'; the cells are base/numbers"):
        run_experiment(experiment, tmp_path / "other", resume=False, only="ia3/*")


def line(method: str, scores: str, seed: int = 0, **fields: Any) -> Line:
    of: dict[str, Any] = {"trained_on": None if method == "base" else "sums", "evaluated_on": "sums", "items": "i"}
    of |= {"learning_rate": None if method == "base" else 0.1, "settings": "", "model": "m", "fingerprint": "f"}
    of |= {"validation_right": 1, "validation_n": 2, "right": scores.count("1"), "n": len(scores), "constant": 1}
    return Line(method=method, seed=seed, scores=scores, **{**of, **fields})


def test_rows_average_the_seeds_at_the_chosen_rate() -> None:
    lines = [
        line("base", "00001111"),
        line("svf", "11111111", parameters=7, train_seconds=2.0, peak_memory=5),
        line("svf", "11110000", seed=1, parameters=7, train_seconds=4.0, peak_memory=9),
        line("svf", "11111111", learning_rate=0.2, validation_right=0),  # better on the test split alone
        line("lora", "11111110", reference=True),
    ]
    base, lora, svf = make_rows(lines)
    assert (base.method, base.accuracy, base.against) == ("base", 0.5, {})
    assert (svf.accuracy, svf.seeds, svf.learning_rate) == (0.75, [0, 1], 0.1)
    assert (svf.parameters, svf.train_seconds, svf.peak_memory) == (7, 3.0, 9)
    assert {other: paired.points for other, paired in svf.against.items()} == {"base": 0.25, "lora": -0.125}
    assert set(lora.against) == {"base"}
    three = sorted([*svf.against.values(), *lora.against.values()], key=lambda paired: paired.p)
    assert three[0].p_holm == pytest.approx(min(1, 3 * three[0].p))


def test_dispatchers_are_tested_against_those_that_are_references(tmp_path: Path) -> None:
    untrained: dict[str, Any] = {"trained_on": None, "learning_rate": None}
    lines = [
        line("base", "00001111"),
        line("embedding", "01111111", **untrained),
        line("a-lora", "00111111", **untrained, reference=True),
    ]
    rows = {row.method: row for row in make_rows(lines)}
    assert {other: paired.points for other, paired in rows["embedding"].against.items()} == {
        "base": pytest.approx(3 / 8),
        "a-lora": pytest.approx(1 / 8),
    }
    assert set(rows["a-lora"].against) == {"base"}
    add_results(tmp_path / "results.jsonl", lines)
    write_report(tmp_path / "results.jsonl", tmp_path)
    assert not (tmp_path / "gain.png").exists()  # nothing was trained
    assert "gain.png" not in (tmp_path / "report.md").read_text()


def test_a_comparison_counts_once_though_both_sides_show_it() -> None:
    base = line("base", "0000000000")
    first = line("svf", "1111111111", reference=True)
    second = line("lora", "0000000001", reference=True)
    rows = make_rows([base, first, second])
    of = {row.method: row.against for row in rows}
    # Two against the base, and one of the two against each other.
    assert of["svf"]["base"].p_holm == pytest.approx(3 * of["svf"]["base"].p)
    assert of["svf"]["lora"].p_holm == of["lora"]["svf"].p_holm == pytest.approx(2 * of["svf"]["lora"].p)
    assert of["svf"]["lora"].points == -of["lora"]["svf"].points == pytest.approx(0.9)
    assert "adjusted by Holm's method for all 3 comparisons" in page([base, first, second], rows)


def test_scores_of_different_items_are_not_paired() -> None:
    with pytest.raises(UserError, match="different items or bases"):
        make_rows([line("base", "01"), line("svf", "01", items="others")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry | {"version": 0}, "results.jsonl:2 has version 0 .* reads version 1"),
        (lambda entry: entry | {"right": 2}, "results.jsonl:2 is damaged"),
        (lambda entry: {"a": 1}, "results.jsonl:2 is not a line of results"),
    ],
)
def test_a_results_file_that_cannot_be_read(change: Any, message: str, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    add_results(results, [line("base", "01"), line("svf", "10")])
    assert read_results(results) == [line("base", "01"), line("svf", "10")]
    first, second = results.read_text().splitlines()
    results.write_text(first + "\n" + json.dumps(change(json.loads(second))) + "\n")
    with pytest.raises(UserError, match=message):
        read_results(results)


def test_the_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["selfadapt", "compare", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    output = tmp_path / "out"
    code, out, err = run(path, "--quick", "--output", output, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {row["method"] for row in document["rows"]} == {"base", "svf"}
    page = (output / "report.md").read_text()
    code, out, err = run(output / "results.jsonl", "--output", tmp_path / "again")
    assert (code, out) == (0, f"{tmp_path / 'again' / 'report.md'}\n"), err
    assert (tmp_path / "again" / "report.md").read_text() == page

    monkeypatch.setattr(cells, "train_recipe", lambda *_, **__: 1 / 0)
    code, out, err = run(path, "--quick", "--output", tmp_path / "failing", "--json")
    assert code == 1
    assert {row["method"] for row in json.loads(out)["rows"]} == {"base"}
    assert err.splitlines()[-1] == "error: failed: svf/numbers/lr0.05/seed0 (ZeroDivisionError: division by zero)"
    code, _, err = run("method")
    assert (code, err) == (1, "error: unknown experiment 'method'; did you mean 'methods'?\n")


def test_domains_are_read_before_any_base_is_loaded(document: dict[str, Any], tmp_path: Path) -> None:
    for block in ("numbers", "letters"):
        where = document["domains" if block == "numbers" else "unseen"][block]
        where["model"] = str(tmp_path / "no-such-base")
    document["unseen"]["letters"]["domain"] = {
        **{"kind": "jsonl", "name": "letters", "description": "Letters.", "judged_by": "exact"},
        "path": str(tmp_path / "nowhere.jsonl"),
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        run_experiment(read_experiment(path), tmp_path / "out", resume=False)
    document["unseen"] = {}
    document["methods"]["svf"]["training"]["sequences_per_step"] = 33
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="sequences_per_step is 33, but there are only 32 rows"):
        run_experiment(read_experiment(path), tmp_path / "out", resume=False)
    assert not (tmp_path / "out" / "cells").exists()


def test_what_nothing_judges_is_no_domain_of_an_experiment(document: dict[str, Any], tmp_path: Path) -> None:
    document["unseen"]["letters"]["domain"] = {
        "kind": "jsonl",
        "name": "letters",
        "description": "Letters.",
        "path": "x",
    }
    document["unseen"]["letters"]["training"] = {"objective": "next_token"}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="letters: an experiment compares right answers; give the domain judged_by"):
        read_experiment(tmp_path / "grid.yaml")
