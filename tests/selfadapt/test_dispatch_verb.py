"""`selfadapt dispatch` and `selfadapt adapt` on a tiny library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dispatch.few_shot import Search
from experts.domains.jsonl import Jsonl
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError
from selfadapt.dispatch_report import Asked, ask_dispatcher, read_labelled
from selfadapt.named_experts import adapt_to_examples

PROMPTS = {"What is 3 plus 4?": "a", "Add 5 and 6.": "a", "What does a cow eat?": "b", "Hi, how are you?": "base"}


@pytest.fixture
def run(run: Any, library: ExpertLibrary) -> Any:
    """`run("dispatch", …)` on the library → (exit code, stdout, stderr)."""
    return lambda *args: run(*args, "--library", library.folder)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    rows = [{"prompt": prompt, "label": label} for prompt, label in PROMPTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_dispatched(run: Any) -> None:
    pytest.importorskip("sentence_transformers")
    code, out, err = run("dispatch", *PROMPTS, "--dispatch", "embedding", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [row["prompt"] for row in document["prompts"]] == [*PROMPTS]
    assert document["prompts"][0]["mixture"] == {"a": 1.0}
    assert 0 <= document["prompts"][0]["confidence"] <= 1
    code, out, err = run("dispatch", "What does a cow eat?", "--dispatch", "prompt")
    assert code == 0, err
    assert out.startswith(("a 1.00 (confidence", "b 1.00 (confidence"))


def test_a_dispatcher_is_evaluated(run: Any, labelled: Path, tmp_path: Path) -> None:
    args = ("dispatch", "--dispatch", "a", "--evaluate", labelled, "--output", tmp_path / "report", "--json")
    code, out, err = run(*args)
    assert code == 0, err
    report = json.loads(out)
    assert report["n"] == 4
    assert report["accuracy"] == 0.5
    assert report["labels"] == ["a", "b", "base"]
    assert report["confusion"] == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert report["coverage"] == []  # a fixed mixture is not confident of anything
    assert 0 < report["share_of_two_passes"] < 1
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    assert "Accuracy 50.0%" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_only_an_earlier_report_is_replaced(labelled: Path, library: ExpertLibrary, tmp_path: Path) -> None:
    own = tmp_path / "report.md"
    own.write_text("mine")
    with pytest.raises(UserError, match=r"report\.md exists already, and this command did not write it"):
        ask_dispatcher("a", Asked(evaluate=labelled, output=tmp_path), library=library.folder)
    assert own.read_text() == "mine"
    own.unlink()
    for _ in range(2):
        ask_dispatcher("a", Asked(evaluate=labelled, output=tmp_path), library=library.folder)


def test_one_line_is_one_prompt_whatever_it_holds(tmp_path: Path, library: ExpertLibrary) -> None:
    path = tmp_path / "labelled.jsonl"
    prompts = ["one\u2028line", "and\u0085another"]
    lines = [json.dumps({"prompt": prompt, "label": "a"}, ensure_ascii=False) for prompt in prompts]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert [row.prompt for row in read_labelled(path, library)] == prompts


def test_a_calibration_is_kept_in_the_library(run: Any, labelled: Path, library: ExpertLibrary, tmp_path: Path) -> None:
    code, out, err = run("dispatch", "--dispatch", "prompt", "--calibrate", labelled)
    assert code == 0, err
    assert out == f"{library.folder / 'prompt_calibration.json'}\n"
    args = ("dispatch", "--dispatch", "prompt", "--evaluate", labelled, "--output", tmp_path / "report", "--json")
    report = json.loads(run(*args)[1])
    assert report["accuracy"] == 0.75  # all but the prompt that belongs to nobody: it never abstains
    assert [row["coverage"] for row in report["coverage"]][-1] == 1
    assert run("dispatch", "--dispatch", "embedding", "--calibrate", labelled)[2].count("only the dispatchers") == 1


def test_in_python_a_dispatcher_does_all_that_is_asked_of_it(
    labelled: Path, library: ExpertLibrary, tmp_path: Path
) -> None:
    asked = Asked(("What is 3 plus 4?",), labelled, labelled, tmp_path / "report")
    done = ask_dispatcher("prompt", asked, library=library.folder)
    assert done.calibration == library.folder / "prompt_calibration.json"
    assert done.report is not None
    assert done.report["accuracy"] == 0.75
    assert done.mixture is not None
    assert done.mixture[0].keys() <= {"a", "b"}
    with pytest.raises(UserError, match=r"no prompt to dispatch; give one or more$"):
        ask_dispatcher("prompt", Asked(), library=library.folder)


def test_nothing_is_loaded_or_calibrated_before_all_is_known_to_be_right(
    labelled: Path, library: ExpertLibrary, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl"):
        ask_dispatcher("prompt", Asked((), labelled, tmp_path / "nowhere.jsonl"), "no/such/base", library.folder)
    assert not (library.folder / "prompt_calibration.json").exists()


def test_the_classifier_needs_an_expert_of_its_own(run: Any, library: ExpertLibrary, tmp_path: Path) -> None:
    code, _, err = run("dispatch", "hello", "--dispatch", "classifier")
    assert code == 1
    assert "has no classification expert" in err
    assert run("experts", "add", library.path("a"), "--classifier")[:2] == (0, "classifier\n")
    assert ExpertLibrary.open(library.folder).names == ["a", "b"]
    code, out, err = run("dispatch", "hello", "--dispatch", "classifier", "--json")
    assert code == 0, err
    assert sum(json.loads(out)["prompts"][0]["mixture"].values()) == 1
    code, out, err = run("generate", "hello", "--dispatch", "classifier", "--max-new-tokens", 2)
    assert code == 0, err


def test_adapt_writes_a_mixture_that_generates(run: Any, tmp_path: Path) -> None:
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps({"prompt": f"Say {i}.", "answer": str(i)}) + "\n" for i in range(6)))
    mix = tmp_path / "MIX.json"
    args = ("--output", mix, "--population", 4, "--generations", 2, "--max-new-tokens", 2, "--judged-by", "last_number")
    code, out, err = run("adapt", examples, *args, "--per", "layer", "--json")
    assert code == 0, err
    assert json.loads(out)["weights"] == Mixture.read(mix)[0]
    assert "generation 2/2" in err
    assert run("generate", "hello", "--dispatch", mix, "--max-new-tokens", 2)[0] == 0


def test_in_python_a_search_writes_the_mixture_that_it_found(library: ExpertLibrary, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * 4)
    examples = Jsonl("examples", "", str(tmp_path / "examples.jsonl"), "last_number")
    quick = Search(population=2, generations=1, max_new_tokens=2)
    heard: list[int] = []
    found = adapt_to_examples(
        examples, tmp_path / "new" / "MIX.json", quick, library=library, on_generation=lambda n, *_: heard.append(n)
    )
    assert Mixture.read(tmp_path / "new" / "MIX.json")[0] == found.mixture[0]
    assert heard == [1]
    with pytest.raises(UserError, match=r"is a folder; name a file, such as MIX.json"):
        adapt_to_examples(examples, tmp_path, quick, "no/such/base", library)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "label": "c"}', ":1: unknown expert 'c'"),
        ('{"prompt": "x"}', ":1: must be an object with prompt and label"),
        ("nonsense", ":1: not JSON"),
        ("", "there are no rows in it"),
    ],
)
def test_labels_that_mean_nothing_are_named(run: Any, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text(line + "\n")
    code, out, err = run("dispatch", "--evaluate", path)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_prompts_beside_labelled_ones_are_refused(run: Any, tmp_path: Path) -> None:
    code, _, err = run("dispatch", "2 + 2?", "--evaluate", tmp_path / "labelled.jsonl")
    assert code == 1
    assert "leave the others out" in err
