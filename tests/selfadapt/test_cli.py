"""The command line as a user meets it: exit codes, what goes to stdout, and one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model

import selfadapt
from experts.library import ExpertLibrary
from experts.svf import SVFConfig


def test_train_and_compare_refuse_programs_before_any_work(
    run: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SELFADAPT_RUN_CODE", raising=False)
    document = yaml.safe_load(recipe.read_text()) | {"model": "no/base", "domain": {"kind": "mbpp"}}
    recipe.write_text(yaml.safe_dump(document))
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"domains": {"mbpp": document}, "methods": {"svf": {}}}))
    for verb, path in (("train", recipe), ("compare", grid)):
        code, out, err = run(verb, path, "--output", tmp_path / "out")
        assert (code, out) == (1, "")
        assert "SELFADAPT_RUN_CODE=1" in err
        assert len(err.splitlines()) == 1


def test_train_add_list_show_and_generate(
    run: Any, recipe: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("train", recipe, "--output", tmp_path / "expert", "--json", "--steps", 1)
    assert code == 0, err
    report = json.loads(out)
    assert report["best_step"] == 1  # --steps won over the file
    assert report["n"] == 4
    assert "step 1/1" in err
    low, high = report["base_interval"]
    assert f"base {report['base_accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}, n = 4), expert" in err
    assert f"McNemar p = {report['p_value']:.2g}" in err.splitlines()[-1]

    library = tmp_path / "library"
    assert run("experts", "add", tmp_path / "expert", "--library", library)[:2] == (0, "expert\n")
    code, out, _ = run("experts", "list", "--library", library, "--json")
    assert json.loads(out)["experts"] == {"expert": "Sums."}
    code, out, _ = run("experts", "show", "expert", "--library", library)
    assert out.startswith("---\nlibrary_name: peft")
    code, out, _ = run("experts", "show", "expert", "--library", library, "--json")
    assert json.loads(out)["parameters"] == 14 * 8

    for dispatch, mixture in (("none", {}), ("expert", {"expert": 1.0})):
        args = ("--dispatch", dispatch, "--library", library, "--max-new-tokens", 4)
        code, out, err = run("generate", "1 + 1 =", "2 + 2 =", *args, "--json")
        assert code == 0, err
        document = json.loads(out)
        assert [answer["mixture"] for answer in document["answers"]] == [mixture, mixture]
        assert all(isinstance(answer["text"], str) for answer in document["answers"])

    warm = ("--temperature", 0.9, "--top-p", 0.9, "--seed", 3)
    texts = [
        [answer["text"] for answer in json.loads(run("generate", *prompts, *args, *more, "--json")[1])["answers"]]
        for prompts, more in ((["1 + 1 =", "2 + 2 ="], warm), (["1 + 1 ="], warm), (["1 + 1 ="], ()))
    ]
    assert texts[0][:1] == texts[1] != texts[2]
    stop = texts[2][0][-1]
    stopped = run("generate", "1 + 1 =", *args, "--stop", stop, "never")
    assert stopped[:2] == (0, texts[2][0].partition(stop)[0] + "\n")
    code, out, err = run("generate", "1 + 1 =", *args, "--top-p", 2)
    assert (code, out) == (1, "")
    assert "top_p" in err.splitlines()[-1]

    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stdout, "isatty", lambda: True)
        assert run("generate", "1 + 1 =", *args)[1] == f"{texts[2][0]}\n[expert 1.00]\n"
        both = run("generate", "1 + 1 =", "2 + 2 =", *args)[1]
    assert both.startswith(f"{texts[2][0]}\n[expert 1.00; pass one ")

    assert run("experts", "remove", "expert", "--library", library)[0] == 0
    assert ExpertLibrary.open(library).names == []
    assert run("experts", "add", tmp_path / "expert", "--library", library)[:2] == (0, "expert\n")


def test_a_file_of_ones_own_is_a_domain(run: Any, recipe: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = yaml.safe_load(recipe.read_text())
    document["domain"] = {
        "kind": "jsonl",
        "name": "own",
        "description": "Repeating numbers.",
        "path": str(tmp_path / "own.jsonl"),
        "judged_by": "last_number",
    }
    recipe.write_text(yaml.safe_dump(document))
    code, out, err = run("train", recipe, "--output", tmp_path / "expert", "--json")
    assert code == 0, err
    assert json.loads(out)["n"] > 0
    log = (tmp_path / "expert" / "training_log.jsonl").read_text()
    assert "Say" not in log  # logs hold no text of a data set


def test_an_expert_of_ones_own_loop_is_added_to_the_base_that_one_names(
    run: Any, tiny_folder: Path, tiny_model: Any, tmp_path: Path
) -> None:
    get_peft_model(tiny_model, SVFConfig(rank=4)).save_pretrained(str(tmp_path / "own"), save_embedding_layers=False)
    add = ("experts", "add", tmp_path / "own", "--library", tmp_path / "library")
    code, out, err = run(*add)
    assert (code, out) == (1, "")
    assert "does not say which base it was trained on; name that base with --model" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "library").exists()
    code, out, err = run(*add, "--model", tiny_folder)
    assert (code, out) == (0, "own\n"), err
    assert ExpertLibrary.open(tmp_path / "library").base == str(tiny_folder)
    assert run(*add, "--model", tiny_folder, "--name", "twice")[:2] == (0, "twice\n")
    code, out, err = run("generate", "1 + 1 =", "--dispatch", "twice", "--library", tmp_path / "library")
    assert code == 0, err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "smollm2-135m/t2l/lora"], "for `selfadapt t2l train smollm2-135m/t2l/lora`"),
        (["t2l", "train", "smollm2-135m/sums"], "for `selfadapt train smollm2-135m/sums`"),
        (["train", "paper"], "for `selfadapt compare paper`"),
        (["compare", "experiments/paper"], "for `selfadapt compare paper`"),
        (["train", "smollm2-135m/sumz"], "unknown recipe 'smollm2-135m/sumz'; did you mean 'smollm2-135m/sums'"),
        (["generate", "hi", "--dispatch", "math", "--model", "nowhere"], "no experts come with the base 'nowhere'"),
        (["generate", "hi", "--library", "nowhere"], "nowhere is not a library"),
        (["generate"], "no prompt"),
        (["experts", "add", "nowhere", "--library", "also-nowhere"], "nowhere is not an expert"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(run: Any, args: list[str], message: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("args", [["frob"], ["train"], ["generate", "--dispach", "x"], ["experts", "rename"]])
def test_wrong_usage_is_exit_code_2(run: Any, args: list[str]) -> None:
    code, out, _ = run(*args)
    assert (code, out) == (2, "")


@pytest.mark.parametrize(
    ("args", "verb"),
    [
        (["generate", "--dispach", "x"], "generate"),
        (["generate", "hi", "--max-new-tokens", "x"], "generate"),
        (["experts", "add"], "experts add"),
        (["experts", "rename"], "experts"),
        (["t2l", "generate"], "t2l generate"),
        (["train", "smollm2-135m/sums", "--steps", "x"], "train smollm2-135m/sums"),
        (["frob"], ""),
    ],
)
def test_a_mistake_in_usage_points_to_the_help_of_its_verb(run: Any, args: list[str], verb: str) -> None:
    err = run(*args)[2]
    assert err.endswith(f"; see selfadapt {verb} --help\n".replace("  ", " "))
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("args", [["generate"], ["generate", "--dispach"], ["generate", "hi", "--model", ""]])
def test_of_several_processes_the_first_says_what_is_wrong(
    run: Any, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(*args)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run(*args) == (code, "", err)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(*args) == (code, "", "")


@pytest.mark.parametrize("option", [("--top-p", 0.9), ("--seed", 3), ("--top-k", 5), ("--min-p", 0.1)])
def test_what_draws_tokens_needs_a_temperature(run: Any, option: tuple[str, float]) -> None:
    code, out, err = run("generate", "hi", "--model", "nowhere", *option)
    assert (code, out) == (1, "")
    assert "give a temperature above 0" in err


@pytest.mark.long
def test_names_of_trl_and_peft_are_options_too(run: Any, recipe: Path, tmp_path: Path) -> None:
    theirs = ("--max-steps", 1, "--max_completion_length=3", "--num-generations", 2, "--beta", 0.5, "--r", 4)
    code, out, err = run("train", recipe, "--output-dir", tmp_path / "expert", *theirs)
    assert (code, out) == (0, f"{tmp_path / 'expert'}\n"), err
    said = yaml.safe_load((tmp_path / "expert" / "README.md").read_text().split("```yaml")[1].split("```")[0])
    assert (said["adapt"]["rank"], said["training"]["steps"], said["training"]["kl"]) == (4, 1, 0.5)
    assert said["training"]["max_new_tokens"] == 3


@pytest.mark.parametrize("prompts", [["1 + 1 ="], ["1 + 1 =", "2 + 2 ="]])
def test_in_a_terminal_it_is_said_who_answered(
    run: Any, tiny_folder: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("generate", *prompts, "--model", tiny_folder, "--max-new-tokens", 2)
    piped = run(*args)[1]
    assert "[base" not in piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = run(*args)
    assert code == 0, err
    assert out.count("[base") == len(prompts)


def test_a_field_that_no_recipe_has_is_wrong_usage(run: Any, recipe: Path) -> None:
    code, _, err = run("train", recipe, "--learning-rat", 1)
    assert code == 2
    assert "--learning-rate" in err


def test_help_of_a_recipe_lists_its_fields(run: Any, recipe: Path) -> None:
    code, out, _ = run("train", recipe, "--help")
    assert code == 0
    assert "--learning-rate" in out
    assert "--domain.dataset" in out


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"selfadapt {selfadapt.__version__}\n", "")


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "selfadapt", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"selfadapt {selfadapt.__version__}\n"


def test_nothing_at_all_shows_the_help(run: Any) -> None:
    assert run() == run("--help")
    assert run()[0] == 0


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = {['selfadapt', *args]}\n"
        "from selfadapt.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == ""
    assert ("train" if args != ["--version"] else selfadapt.__version__) in result.stdout


def test_help_says_what_each_verb_does(run: Any) -> None:
    _, out, _ = run("--help")
    assert "Answer prompts with the base, an expert, or a mixture." in out
    assert "Answer prompts with the base" in run("generate", "--help")[1]
    assert "List a library's experts" in run("experts", "--help")[1]
    assert "partial(" not in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--output", "."], "is the current folder"),
        (["--output", "/"], "is the current folder"),
        (["--output", "numbers.yaml"], "is a file"),
        (["--output", "numbers.yaml/expert"], "cannot write to"),
        (["--output", "full"], "exists already"),
        (["--resume"], "nothing to resume"),
        (["--prompts-per-step", "33"], "prompts_per_step is 33, but there are only 32 rows to train on"),
        (["--micro-batch-size", "3"], "micro_batch_size 3 does not divide the 4 sequences"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--temperature", "0"], "temperature must be a positive number"),
        (["--learning-rate", "nan"], "learning_rate must be a positive number"),
        (["--steps", "-1"], "steps must be at least 1"),
        (["--test-size", "0"], "test_size must be a whole number of 1 or more"),
    ],
)
def test_train_finds_a_mistake_before_it_loads_the_base(
    run: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("train", recipe, "--model", "no/such/base", *changes)
    assert (code in (1, 2), out) == (True, "")
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_train_with_the_examples_of_an_own_file_has_fewer_rows_than_a_step(
    run: Any, recipe: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = yaml.safe_load(recipe.read_text())
    document["domain"] = {
        "kind": "jsonl",
        "name": "sums",
        "description": "Sums.",
        "path": str(tmp_path / "sums.jsonl"),
        "judged_by": "last_number",
    }
    document["training"]["prompts_per_step"] = 40
    recipe.write_text(yaml.safe_dump(document))
    code, _, err = run("train", recipe, "--output", tmp_path / "expert")
    assert code == 1
    assert "prompts_per_step is 40, but there are only " in err.splitlines()[-1]
    assert not list(tmp_path.glob("expert*"))


def test_adapt_finds_a_mistake_in_its_output_before_it_loads_the_base(
    run: Any, library: ExpertLibrary, tmp_path: Path
) -> None:
    (tmp_path / "examples.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * 4)
    adapt = ("adapt", tmp_path / "examples.jsonl", "--library", library.folder, "--model", "no/such/base")
    code, _, err = run(*adapt, "--output", tmp_path)
    assert (code, err) == (1, f"error: {tmp_path} is a folder; --output must be a file, such as MIX.json\n")
    code, _, err = run(*adapt, "--output", tmp_path / "examples.jsonl" / "MIX.json")
    assert code == 1
    assert err.startswith("error: cannot write to")
    before = (tmp_path / "examples.jsonl").read_bytes()
    code, _, err = run(*adapt, "--output", tmp_path / "examples.jsonl")
    assert (code, "exists already, and is not a mixture; choose another file" in err) == (1, True)
    assert (tmp_path / "examples.jsonl").read_bytes() == before
