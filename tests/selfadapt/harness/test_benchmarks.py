"""Written adapters on benchmarks: each answers what it is judged by, and what is said of it follows from that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experts import ExpertLibrary
from experts.exchange.lora import Lora
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.tasks import read_descriptions
from experts.text_to_lora.writer import TextToAdapter
from selfadapt import load_base
from selfadapt.harness import benchmarks
from selfadapt.harness.benchmark_table import Judged, compared
from selfadapt.harness.evaluation import evaluate


@pytest.fixture
def task_folder(task_folder: Path) -> Path:
    """One more task, `letters`, whose choices are as long as each other: what a random model prefers is its own."""
    rows = [
        {"question": f"letter {n}", "choices": [chr(97 + (5 * n + 7 * k) % 26) for k in range(3)], "answer": n % 3}
        for n in range(24)
    ]
    (task_folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = yaml.safe_load((task_folder / "choice.yaml").read_text())
    task |= {"task": "letters", "dataset_kwargs": {"data_files": {"test": str(task_folder / "letters.jsonl")}}}
    (task_folder / "letters.yaml").write_text(yaml.safe_dump(task))
    return task_folder


@pytest.fixture
def network(library: ExpertLibrary, tmp_path: Path) -> Any:
    """`network(output)` → the folder of a network with random weights that writes for the tiny base."""

    def network(output: LoraOutput | SvfOutput) -> Path:
        base, tokenizer = load_base(library.base)
        matrices = read_matrices(base.config, output.target_modules)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            writer = TextToAdapter.untrained(
                output, matrices, LastTokenEncoder(base, tokenizer), base=library.base, fingerprint=library.fingerprint
            )
            for head in writer.network.heads:
                for parameter in head.parameters():
                    parameter.data.normal_(std=0.3)
        writer.save_pretrained(tmp_path / "network")
        return tmp_path / "network"

    return network


@pytest.fixture
def descriptions(tmp_path: Path) -> Path:
    rows = {
        "letters": ["Choose a letter.", "Which of the three letters belongs to the number?", "zzz"],
        "writing": ["Write a number."],
        "reading": ["Read a text."],
    }
    file = tmp_path / "descriptions.jsonl"
    file.write_text("".join(json.dumps({"task": name, "descriptions": own}) + "\n" for name, own in rows.items()))
    return file


def digits(library: ExpertLibrary, task_folder: Path, dispatch: str, task: str = "letters") -> str:
    """What `selfadapt eval` finds right."""
    results = evaluate(
        [task],
        dispatch,
        library=library.folder,
        include_path=task_folder,
        model_args={"dtype": None},
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
    )
    assert results is not None
    metric = results["samples"][task][0]["metrics"][0]
    return "".join(str(int(sample[metric])) for sample in results["samples"][task])


@pytest.mark.long
@pytest.mark.parametrize("output", [LoraOutput(rank=2), SvfOutput(rank=4)], ids=["lora", "svf"])
def test_every_method_is_judged_as_eval_judges(
    run: Any, library: ExpertLibrary, network: Any, task_folder: Path, descriptions: Path, tmp_path: Path, output: Any
) -> None:
    oracles = tmp_path / "oracles"
    for benchmark, expert in {"letters": "a", "writing": "b"}.items():
        shutil.copytree(library.folder / expert, oracles / benchmark)
    folder = network(output)
    asked = ("--benchmarks", "letters,writing", "--include-path", task_folder, "--batch-size", 4)
    rivals = ("--multi-task", library.folder / "b", "--oracles", oracles, "--adapters", oracles)
    given = ("--model", library.base, "--descriptions", descriptions)
    code, out, err = run("t2l", "evaluate", folder, *given, *asked, *rivals, "--json")
    assert code == 0, err
    document = json.loads(out)
    scores = {(row["method"], row["benchmark"]): row["scores"] for row in document["rows"]}
    own = {"base": "none", "multi-task adapter": "b", "adapter of the benchmark itself": "a"}
    for method, dispatch in own.items():
        assert scores[method, "letters"] == [digits(library, task_folder, dispatch)]
    assert scores["multi-task adapter", "letters"] != scores["adapter of the benchmark itself", "letters"]
    mean = tmp_path / "mean.json"
    mean.write_text(json.dumps({"weights": {"a": 0.5, "b": 0.5}}))
    assert scores["average of adapters", "letters"] == [digits(library, task_folder, str(mean))]

    # Each description has its adapter: that which `generate` writes from it.
    texts = read_descriptions(descriptions)
    written = ExpertLibrary.create(tmp_path / "written", library.base, library.fingerprint)
    for number, text in enumerate(texts["letters"]):
        made = tmp_path / f"made{number}"
        assert run("t2l", "generate", text, "--network", folder, "--output", made, "--model", library.base)[0] == 0
        written.add(made, description="Something.")
    of_each = [digits(written, task_folder, f"made{number}") for number in range(3)]
    assert scores["written", "letters"] == of_each
    assert len(set(of_each)) > 1
    assert len(scores["written", "writing"]) == 1
    controls = [
        scores[f"written, {control}", "letters"]
        for control in ("another benchmark's description", "random description")
    ]
    assert all(control != of_each for control in controls)
    assert [*document["means"]] == [*benchmarks.NEEDS]

    some = ["multi-task adapter", "written, random description"]
    code, out, err = run("t2l", "evaluate", folder, *given, *asked, *rivals, "--methods", ",".join(some), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["reference"] == some[1]
    assert {(row["method"], row["benchmark"]): row["scores"] for row in document["rows"]} == {
        key: own for key, own in scores.items() if key[0] in some
    }


def test_the_table(run: Any, library: ExpertLibrary, task_folder: Path) -> None:
    code, out, err = run(
        *("t2l", "evaluate", "--model", library.base, "--multi-task", library.folder / "b", "--batch-size", 8),
        *("--benchmarks", "choice", "--include-path", task_folder, "--limit", 6),
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "| benchmark | metric | n | method | adapters | right | against base |"
    assert [line.split(" | ")[3] for line in lines[2:5]] == [
        "base",
        "multi-task adapter",
        "always the most common answer",
    ]
    assert lines[4].endswith("| 33.3% |  |")  # the answers are 0, 1, 2, 0, 1, 2
    assert "| choice | acc | 6 | base | 1 | " in lines[2]


def test_where_the_questions_differ_the_right_one_counts_as_the_answer(
    run: Any, library: ExpertLibrary, task_folder: Path
) -> None:
    """As in Winogrande: the choices are beginnings of a text that goes on alike."""
    task = yaml.safe_load((task_folder / "choice.yaml").read_text())
    task |= {"task": "beginnings", "doc_to_text": "{{answer}}", "doc_to_target": "so {{question}}"}
    (task_folder / "beginnings.yaml").write_text(yaml.safe_dump(task))
    code, out, err = run(
        *("t2l", "evaluate", "--model", library.base, "--batch-size", 8),
        *("--benchmarks", "beginnings", "--include-path", task_folder, "--limit", 6),
    )
    assert code == 0, err
    assert "| always the most common answer |  | 33.3% |  |" in out


def test_scores_that_were_kept_are_gone_on_from(
    run: Any, library: ExpertLibrary, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(*args: object, named: str = "choice,letters") -> Any:
        asked = ("--model", library.base, "--include-path", task_folder, "--benchmarks", named, "--batch-size", 8)
        code, out, err = run("t2l", "evaluate", *asked, "--json", *args)
        return json.loads(out) if code == 0 else err.splitlines()[-1]

    rival = ("--multi-task", library.folder / "b")
    whole = evaluated(*rival, "--limit", 6)
    kept = (*rival, "--limit", 6, "--output", tmp_path / "scores.jsonl")
    judge, judged = benchmarks._Judge.__call__, []

    def stopping(self: Any, method: Any, benchmark: Any, name: str) -> Any:
        judged.append((method.name, name))
        if len(judged) == 3:
            raise KeyboardInterrupt
        return judge(self, method, benchmark, name)

    monkeypatch.setattr(benchmarks._Judge, "__call__", stopping)
    assert "scores.jsonl has the scores so far: resume to continue" in evaluated(*kept)
    assert "scores.jsonl exists already; resume it" in evaluated(*kept)
    assert evaluated(*kept, "--resume") == whole
    assert [own for own in judged if judged.count(own) > 1] == [judged[2]] * 2
    judged.clear()
    assert evaluated(*kept, "--resume") == whole
    assert evaluated(*kept, "--resume", named="choice")["rows"] == whole["rows"][:2]
    assert judged == []
    assert "settings than these (limit)" in evaluated(*kept, "--resume", "--limit", 5)
    rows = task_folder / "letters.jsonl"
    rows.write_text(rows.read_text().replace("letter ", "Letter "))
    assert "settings than these (benchmark)" in evaluated(*kept, "--resume")
    assert "give it as --output" in evaluated("--resume")


def test_a_score_is_the_mean_over_its_descriptions() -> None:
    first, second = (
        [[1, 1, 0, 0, 0, 1]],
        [[1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1]],
    )
    table = compared(
        [
            *(Judged("base", name, "acc", first, 0.5) for name in "ab"),
            *(Judged("written", name, "acc", own, 0.5) for name, own in {"a": second, "b": first}.items()),
        ],
        "written",
    )
    base, written, *of_b = table.rows
    assert [row.benchmark for row in table.rows] == ["a", "a", "b", "b"]
    assert written.accuracy == pytest.approx(np.mean(second))
    assert written.against is None
    assert base.against is not None
    assert base.against.points == pytest.approx(np.mean(first) - np.mean(second))
    assert written.interval[0] < written.accuracy < written.interval[1]
    assert of_b[0].against is not None
    assert (of_b[0].against.points, of_b[0].against.p_holm) == (0, 1)
    assert base.against.p_holm == min(1, 2 * base.against.p)
    assert table.means == {"base": 0.5, "written": pytest.approx((np.mean(second) + 0.5) / 2)}
    assert written.scores == ["110011", "011011", "111011"]


def test_a_mistake_of_the_users_is_one_line(
    run: Any, library: ExpertLibrary, network: Any, task_folder: Path, descriptions: Path, tmp_path: Path
) -> None:
    folder = network(SvfOutput(rank=4))

    def error(*args: object, named: str = "choice") -> str:
        asked = ("--model", library.base, "--include-path", task_folder, "--benchmarks", named, "--limit", 2)
        code, out, err = run("t2l", "evaluate", *asked, *args)
        assert (code, out) == (1, ""), err
        return err.splitlines()[-1]

    document = yaml.safe_load((task_folder / "writing.yaml").read_text())
    (task_folder / "overlap.yaml").write_text(
        yaml.safe_dump({**document, "task": "overlap", "metric_list": [{"metric": "chrf"}]})
    )
    assert "the benchmark 'choice' has no description: give --descriptions" in error(folder)
    assert "no file of descriptions 'nowhere.jsonl'" in error(folder, "--descriptions", "nowhere.jsonl")
    assert "no such folder: nowhere" in error("--oracles", "nowhere")
    assert f"{tmp_path} holds no adapter for choice" in error("--oracles", tmp_path)
    assert "'reading' scores whole texts" in error(named="reading")
    assert "overlap is scored by chrf" in error(named="overlap")
    assert "no task to evaluate" in error(named=",")
    assert "--limit must be" in error("--limit", 0)
    assert "--instances is for test tasks" in error("--instances", 3)
    assert "there is no method 'x'; the methods are: base; written; written, another benchm" in error("--methods", "x")
    assert "the method 'written' needs a network" in error("--methods", "base,written")
    (tmp_path / "empty").mkdir()
    assert "empty is not a PEFT adapter" in error("--multi-task", tmp_path / "empty")
    matrix = "model.layers.0.self_attn.q_proj"
    Lora({matrix: torch.ones(2, 16)}, {matrix: torch.ones(16, 2)}).write(tmp_path / "small")
    assert f"is for a {matrix} of shape [16, 16]" in error("--multi-task", tmp_path / "small")
    code, _, err = run("t2l", "evaluate", "--model", library.base, "--limit", 2)
    assert (code, "--limit is for benchmarks: name them with --benchmarks" in err) == (1, True)


def test_every_benchmark_of_the_paper_is_described() -> None:
    texts = read_descriptions(benchmarks.find_descriptions(benchmarks.SHIPPED))
    paper = {"arc_easy", "arc_challenge", "boolq", "gsm8k", "hellaswag", "openbookqa", "piqa", "winogrande", "mbpp"}
    assert paper <= texts.keys()
    assert all(len(own) >= 3 for own in texts.values())
