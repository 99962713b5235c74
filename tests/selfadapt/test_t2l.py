"""Text-to-LoRA as a user meets it: recipes, the three verbs, and one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.shipped import shipped_library
from experts.svf.fingerprint import fingerprint
from experts.text_to_lora.adapters import TaskAdapters
from experts.text_to_lora.network import SvfOutput
from experts.text_to_lora.supervised import Supervised
from selfadapt.cli import main
from selfadapt.recipes import configs_folder
from selfadapt.recipes.text_to_lora import find_recipe, read_recipe

SHIPPED = sorted(configs_folder().glob("*/t2l/*.yaml"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("generate", …)` → (exit code, stdout, stderr) of `selfadapt t2l generate …`."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["selfadapt", "t2l", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks: four to train on and two to test on, each of which wants one letter."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    splits = {f"task{i:03d}_letter_{letter}": "train" if i < 4 else "test" for i, letter in enumerate("abcdef")}
    rows = [
        {
            "task": name,
            "split": split,
            "Definition": [f"Always write {name[-1]}"],
            "Positive Examples": [{"input": "example", "output": name[-1]}],
        }
        for name, split in splits.items()
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "test"):
        instances = [
            {"task": name, "id": f"{name}:{i}", "input": f"input {i}", "output": [name[-1] * 2]}
            for name, own in splits.items()
            if own == split
            for i in range(5)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instances))
    return folder


@pytest.fixture
def write_recipe(tiny_folder: Path, tasks: Path, tmp_path: Path) -> Any:
    """`write_recipe(name, output, training, **changes)` → the file of a recipe for the tiny base, read by itself."""

    def write_recipe(name: str, output: dict[str, Any], training: dict[str, Any], **changes: Any) -> Path:
        document = {
            "model": str(tiny_folder),
            "encoder": "base",
            "output": output,
            "data": {"path": str(tasks), "validation_tasks": 1},
            "training": training,
            "network": {"latent_size": 16, "head_size": 8},
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write_recipe


SUPERVISED = {"kind": "supervised", "steps": 2, "tasks_per_step": 3, "validate_every": 1, "learning_rate": 0.01}
ADAPTERS = {"kind": "adapters", "steps": 3, "leave_out": 2, "instances_per_step": 2, "learning_rate": 0.01}


def test_a_sentence_becomes_a_lora(run: Any, write_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe("lora", {"kind": "lora", "rank": 2}, SUPERVISED)
    code, out, err = run("train", recipe, "--output", tmp_path / "network", "--steps", 3, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert sorted(map(int, report["validations"])) == [0, 1, 2, 3]  # --steps won over the file
    assert "step 3/3" in err

    code, out, err = run(
        *("generate", "Always write z.", "--output", tmp_path / "lora", "--network", tmp_path / "network"),
        *("--model", tiny_folder, "--json"),
    )
    assert code == 0, err
    document = json.loads(out)
    assert (document["kind"], document["rank"], document["matrices"]) == ("lora", 2, 4)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    plain = base(ids).logits
    assert not torch.equal(PeftModel.from_pretrained(base, str(tmp_path / "lora"))(ids).logits, plain)
    code, _, err = run("generate", "Always write z.", "--output", tmp_path / "lora", "--network", tmp_path / "network")
    assert (code, "exists already" in err) == (1, True)


def test_a_sentence_becomes_an_expert(run: Any, write_recipe: Any, tiny_model: Any, tmp_path: Path) -> None:
    recipe = write_recipe("svf", {"kind": "svf", "rank": 4}, SUPERVISED)
    assert run("train", recipe, "--output", tmp_path / "network")[0] == 0
    args = ("--output", tmp_path / "writing", "--network", tmp_path / "network")
    code, out, err = run("generate", "Always write z.", *args)
    assert (code, out.strip()) == (0, str(tmp_path / "writing")), err
    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))
    library.add(tmp_path / "writing")
    assert library.config("writing").description == "Always write z."
    library.load(tiny_model)


@pytest.mark.long
def test_adapters_are_reconstructed_and_everything_is_compared(run: Any, write_recipe: Any, tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 2}
    recipe = write_recipe("each", lora, ADAPTERS)
    code, out, err = run("train", recipe, "--output", tmp_path / "each", "--json")
    assert code == 0, err
    assert len(json.loads(out)["adapters"]) == 3
    assert run("train", recipe, "--output", tmp_path / "oracles", "--split", "test")[0] == 0
    assert run("train", recipe, "--output", tmp_path / "all", "--one-for-all")[0] == 0

    reconstruction = {"kind": "reconstruction", "steps": 4, "adapters": str(tmp_path / "each"), "validate_every": 2}
    for loss in ("normalised", "difference"):
        recipe = write_recipe("again", {"kind": "lora", "size": "S"}, {**reconstruction, "loss": loss})
        code, out, err = run("train", recipe, "--output", tmp_path / loss, "--adapters-per-step", 3, "--json")
        assert code == 0, err
        assert set(json.loads(out)["validations"]) == {"0", "2", "4"}

    code, out, err = run(
        *("evaluate", tmp_path / "normalised", "--model", yaml.safe_load(recipe.read_text())["model"]),
        *("--tasks", tmp_path / "tasks", "--instances", 2, "--max-new-tokens", 2, "--json"),
        *("--adapters", tmp_path / "each", "--multi-task", tmp_path / "all", "--oracles", tmp_path / "oracles"),
    )
    assert code == 0, err
    document = json.loads(out)
    assert len(document["scores"]) == len(document["estimates"]) == 12
    for name, scores in document["scores"].items():
        assert [score["task"][-1] for score in scores] == ["e", "e", "f", "f"], name
    assert document["estimates"]["written"]["loss_difference"]["mean"] == 0
    assert document["estimates"]["base"]["loss"]["low"] > 0

    on_train = ("evaluate", tmp_path / "normalised", "--split", "train", "--tasks", tmp_path / "tasks", "--json")
    on_train += ("--model", yaml.safe_load(recipe.read_text())["model"], "--instances", 1, "--max-new-tokens", 2)
    code, out, err = run(*on_train, "--oracles", tmp_path / "each")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert {score["task"] for score in scores["written"]} == {path.name for path in (tmp_path / "each").iterdir()}
    assert len(scores["adapter of the task itself"]) == 3
    code, _, err = run(*on_train)
    assert (code, "give their folder with --oracles" in err) == (1, True)


def test_an_evaluation_of_chosen_methods_goes_on(run: Any, tasks: Path, tiny_folder: Path, tmp_path: Path) -> None:
    asked = ("evaluate", "--model", tiny_folder, "--tasks", tasks, "--max-new-tokens", 2, "--json")
    chosen = ("--methods", "3 examples in the prompt,base")
    code, whole, err = run(*asked, *chosen)
    assert (code, [*json.loads(whole)["scores"]]) == (0, ["base", "3 examples in the prompt"]), err
    kept = ("--output", tmp_path / "scores.jsonl")
    assert run(*asked, *chosen, *kept)[:2] == (0, whole)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4  # two methods, two tasks
    (tmp_path / "scores.jsonl").write_text("".join(lines[:1]))
    code, out, err = run(*asked, *chosen, *kept, "--resume")
    assert (code, out) == (0, whole), err
    assert (tmp_path / "scores.jsonl").read_text() == "".join(lines)

    for wrong, message in [
        ([*chosen, *kept], "scores.jsonl exists already; resume it, or choose another file"),
        ([*kept, "--resume", "--instances", 1], "with other settings than these (tasks, instances)"),
        ([*kept, "--resume", "--dtype", "bfloat16"], "with other settings than these (dtype)"),
        (["--resume"], "give it as --output"),
        (["--methods", "bace"], "there is no method 'bace'; the methods are: base; description in the prompt; "),
        (["--methods", "written, random vector"], "the method 'written, random vector' needs a network"),
    ]:
        code, out, err = run(*asked, *wrong)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert message in err


@pytest.mark.long
def test_experts_are_reconstructed(run: Any, write_recipe: Any, tmp_path: Path, tiny_model: Any) -> None:
    recipe = write_recipe("experts", {"kind": "svf", "rank": 4}, ADAPTERS)
    assert run("train", recipe, "--output", tmp_path / "experts")[0] == 0
    training = {"kind": "reconstruction", "steps": 2, "adapters": str(tmp_path / "experts"), "loss": "difference"}
    recipe = write_recipe("again", {"kind": "svf"}, training)
    code, _, err = run("train", recipe, "--output", tmp_path / "network")
    assert code == 0, err
    spec = json.loads((tmp_path / "network" / "network.json").read_text())
    assert (spec["output"]["rank"], spec["fingerprint"]) == (4, fingerprint(tiny_model))
    recipe = write_recipe("wrong", {"kind": "lora"}, training)
    code, _, err = run("train", recipe, "--output", tmp_path / "other")
    assert (code, "holds adapters of the kind svf" in err) == (1, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": {"kind": "dora"}}, "unknown kind 'dora'"),
        ({"output": {"kind": "lora", "sise": "L"}}, "unknown field 'output.sise'; did you mean 'output.size'"),
        ({"output": {"kind": "lora", "size": "XL"}}, "output.size"),
        ({"training": {"steps": 3}}, "training needs a kind, one of supervised, reconstruction, adapters"),
        ({"training": {**SUPERVISED, "warm": 1}}, "unknown field 'training.warm'; did you mean 'training.warmup'"),
        ({"training": {**SUPERVISED, "steps": 0}}, "at least 1"),
        ({"data": {"folder": "x"}}, "unknown field 'data.folder'"),
        ({"data": {"path": "nowhere"}}, "no folder of tasks 'nowhere'"),
        ({"encoder": "all-minilm"}, "unknown text encoder 'all-minilm'"),
        ({"network": {"latent_size": 10}}, "multiple of 4"),
        ({"data": {"path": None, "descriptions": "x"}}, "data.path is null, but this training needs instances"),
        ({"training": {"kind": "reconstruction", "steps": 1, "adapters": "nowhere"}}, "nowhere holds no adapters"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(
    run: Any, write_recipe: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = write_recipe("wrong", **{"output": {"kind": "lora"}, "training": SUPERVISED, **changes})
    code, out, err = run("train", recipe, "--output", tmp_path / "network")
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "network").exists()


def test_a_mistake_in_generating_is_one_line(run: Any, write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe("svf", {"kind": "svf", "rank": 4}, SUPERVISED)
    assert run("train", recipe, "--output", tmp_path / "network")[0] == 0
    config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    for args, message in [
        ([" "], "a description is empty"),
        (
            ["Write.", "--model", tmp_path / "other"],
            "another base: it expects model.layers.0.self_attn.q_proj",
        ),
        (["Write.", "--network", tmp_path], "holds no text-to-adapter network"),
    ]:
        code, out, err = run(
            "generate", *args[:1], "--output", tmp_path / "x", "--network", tmp_path / "network", *args[1:]
        )
        assert (code, out) == (1, "")
        assert message in err
        assert not (tmp_path / "x").exists()
    for other in ("nobody/nothing", "Qwen/Qwen2.5-Coder-0.5B-Instruct"):  # without shipped experts, and with
        code, _, err = run("generate", "Write.", "--output", tmp_path / "x", "--model", other)
        assert (code, f"no network comes with the base {other!r}; train one" in err) == (1, True)
        assert err.count("\n") == 1


def test_the_network_that_comes_with_the_built_in_base_needs_no_option(run: Any, tmp_path: Path) -> None:
    code, out, err = run("generate", "Boxes with the same number of things in each", "--output", tmp_path / "boxes")
    assert (code, out.strip()) == (0, str(tmp_path / "boxes")), err
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    assert Expert.read(tmp_path / "boxes").fingerprint == library.fingerprint

    def flat(z: Any) -> torch.Tensor:
        return torch.cat([z[matrix] - 1 for matrix in sorted(z)])

    written = flat(Expert.read(tmp_path / "boxes").z)
    similar = {name: torch.cosine_similarity(written, flat(library.z(name)), dim=0) for name in library.names}
    assert max(similar, key=similar.__getitem__) == "groups"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path: Path) -> None:
    name = path.relative_to(configs_folder()).with_suffix("").as_posix()
    assert find_recipe(name) == path
    document, spelled_out = yaml.safe_load(path.read_text()), read_recipe(path).to_dict()
    assert json.loads(json.dumps(spelled_out)) == spelled_out  # a resumed run compares them
    for block in ("training", "output", "data"):
        for key, value in document[block].items():
            found = spelled_out[block][key]
            assert (found | value if isinstance(value, dict) else value) == found


def test_recipes_that_are_compared_read_the_same_prompts() -> None:
    recipes = {path.stem: read_recipe(path) for path in SHIPPED if path.parents[1].name == "smollm2-135m"}
    read = {
        (recipe.data.path, recipe.training.prompt)
        for recipe in recipes.values()
        if isinstance(recipe.training, Supervised | TaskAdapters)
    }
    assert len(read) == len({path for path, _ in read})
    outputs = [recipes[name].output for name in ("svf", "experts")]
    assert outputs[0] == outputs[1]
    assert isinstance(outputs[0], SvfOutput)
    with pytest.raises(UserError, match="did you mean 'smollm2-135m/t2l/lora'"):
        find_recipe("smollm2-135m/t2l/lorra")


@pytest.mark.slow
def test_two_processes_train_one_network(write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe("lora", {"kind": "lora", "rank": 2}, {**SUPERVISED, "tasks_per_step": 2})
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, *launch.split(), "--dynamo_backend", "no", "--module", "selfadapt.cli", "t2l", "train"]
    result = subprocess.run(
        [*command, str(recipe), "--output", str(tmp_path / "network"), "--json"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)["validations"]) == {"0", "1", "2"}  # printed once, by the first process
    lines = (tmp_path / "network" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "learning_rate" in line] == [1, 2]


@pytest.mark.parametrize(
    ("training", "changes", "said"),
    [
        (SUPERVISED, ["--output", "."], "is the current folder"),
        (SUPERVISED, ["--output", "full"], "exists already"),
        (SUPERVISED, ["--micro-batch-size", "0"], "micro_batch_size must be at least 1"),
        (SUPERVISED, ["--resume"], "nothing to resume"),
        (ADAPTERS, ["--output", "full", "--one-for-all"], "exists already and is not an adapter"),
        (ADAPTERS, ["--output", "file/adapters"], "cannot write to"),
        (ADAPTERS, ["--leave-out", "5"], "all of them left out"),
    ],
)
def test_train_finds_a_mistake_before_it_loads_the_base(
    run: Any,
    write_recipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
    changes: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe("lora", {"kind": "lora", "rank": 2}, training)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("train", recipe, "--model", "no/such/base", *changes)
    assert (code, out) == (1, "")
    assert said in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("training", [SUPERVISED, ADAPTERS])
def test_instances_that_do_not_fit_the_context_are_one_line_before_training(
    run: Any, write_recipe: Any, tasks: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    rows = (tasks / "train.jsonl").read_text().replace("input 3", "a" * 600)
    (tasks / "train.jsonl").write_text(rows)
    recipe = write_recipe("lora", {"kind": "lora", "rank": 2}, training)
    wide = ("--prompt.max-prompt-tokens", "700", "--prompt.max-answer-tokens", "64")
    code, _, err = run("train", recipe, "--output", tmp_path / "out", *wide)
    assert code == 1
    assert "the model's context of 512" in err.splitlines()[-1]
    assert not list(tmp_path.glob("out*"))
