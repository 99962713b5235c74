"""`selfadapt experts push | pull`, and a library of the hub wherever a library can be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.outside.files import write_json
from selfadapt import SelfAdaptiveModel
from tests.hub_server import HubServer

BASE = "someone/tiny"


@pytest.fixture
def base_on_the_hub(hub: HubServer, tiny_folder: Path) -> str:
    HfApi().create_repo(BASE)
    HfApi().create_commit(BASE, [CommitOperationAdd(p.name, p) for p in tiny_folder.iterdir()], commit_message="A base")
    return BASE


def test_pushed_pulled_and_answered_with(
    run: Any, hub: HubServer, base_on_the_hub: str, library: ExpertLibrary, tmp_path: Path
) -> None:
    args = ("--library", library.folder, "--base-model", BASE, "--license", "mit", "--json")
    code, out, err = run("experts", "push", "someone/mine", *args)
    assert code == 0, err
    assert json.loads(out)["commit"].startswith(f"{hub.url}/someone/mine/commit/")
    code, out, err = run("experts", "pull", "someone/mine", "--output", tmp_path / "pulled")
    assert (code, out) == (0, f"{tmp_path / 'pulled'}\n")
    assert not any(path.is_symlink() for path in (tmp_path / "pulled").rglob("*"))
    pulled = ExpertLibrary.open(tmp_path / "pulled")
    assert (pulled.names, pulled.base) == (["a", "b"], BASE)
    pulled.remove("a")  # it is one's own

    code, out, err = run("experts", "list", "--library", "someone/mine", "--json")
    assert json.loads(out)["experts"] == {"a": "Sums of numbers.", "b": "Questions about animals."}
    given = ("generate", "1 + 1 =", "--dispatch", "b", "--max-new-tokens", 4, "--json", "--library")
    answers = [json.loads(run(*given, place)[1])["answers"][0]["text"] for place in (library.folder, "someone/mine")]
    assert answers[0] == answers[1]
    model = SelfAdaptiveModel.from_pretrained(library="someone/mine", dispatch="b")
    assert model.generate(["1 + 1 ="], max_new_tokens=4)[0].text == answers[0]


@pytest.mark.long
def test_one_expert_with_its_twin(
    run: Any, hub: HubServer, base_on_the_hub: str, library: ExpertLibrary, tmp_path: Path
) -> None:
    args = ("--library", library.folder, "--expert", "b", "--with-lora", "--base-model", BASE)
    code, _, err = run("experts", "push", "someone/animals", *args)
    assert code == 0, err
    assert "lora/adapter_model.safetensors" in hub.repositories["someone/animals"].files
    assert ModelCard.load("someone/animals").data.base_model == BASE
    code, _, err = run("experts", "pull", "someone/animals", "--output", tmp_path / "b2")
    assert code == 0, err
    code, _, err = run("experts", "push", "someone/again", "--expert", tmp_path / "b2", "--private")
    assert code == 0, err
    assert hub.repositories["someone/again"].private
    again, animals = (hub.repositories[f"someone/{name}"].files for name in ("again", "animals"))
    assert again.keys() == animals.keys()
    code, out, err = run("export", "someone/animals", "--format", "lora", "--output", tmp_path / "lora", "--json")
    assert code == 0, err
    assert json.loads(out)["base"] == BASE


def test_an_expert_of_the_hub_is_added(
    run: Any, hub: HubServer, base_on_the_hub: str, library: ExpertLibrary, tmp_path: Path
) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    assert (
        run("experts", "push", "someone/animals", "--library", library.folder, "--expert", "b", "--base-model", BASE)[0]
        == 0
    )
    own = tmp_path / "own"
    for args, name in (((), "animals"), (("--name", "zoo"), "zoo")):
        code, out, err = run("experts", "add", "someone/animals", "--library", own, *args)
        assert (code, out) == (0, f"{name}\n"), err
    assert not any(path.is_symlink() for path in own.rglob("*"))
    z = ExpertLibrary.open(own).z("animals")
    assert all(torch.equal(vector, z[matrix]) for matrix, vector in library.z("b").items())
    code, out, err = run("experts", "add", "someone/mine", "--library", own)
    assert (code, out) == (1, "")
    assert "selfadapt experts pull" in err.splitlines()[-1]
    code, out, err = run("experts", "add", "someone/nothing", "--library", own)
    assert (code, out) == (1, "")
    assert "there is no folder someone/nothing here, and fetching it from the hub failed" in err.splitlines()[-1]


MISTAKES = [
    (("push", "someone/mine"), "say what to push"),
    (("push", "someone/mine", "--library", "LIBRARY"), "name the base with base_model=, or --base-model on"),
    (("push", "someone/mine", "--library", "LIBRARY", "--expert", "LORA", "--with-lora"), "is a LoRA itself; leave"),
    (("push", "someone/mine", "--library", "LIBRARY", "--expert", "c"), "there is no folder c with an expert in it"),
    (("push", "someone/mine", "--library", "LIBRARY", "--expert", "c"), "unknown expert 'c'"),
    (("push", "someone/mine", "--library", "LIBRARY", "--with-lora"), "a has no LoRA beside it"),
    (("push", "other/mine", "--library", "LIBRARY", "--base-model", BASE), "your token cannot write there"),
    (("pull", "someone/nothing", "--output", "OUTPUT"), "there is no such repository on the hub"),
    (("pull", "someone/tiny", "--output", "OUTPUT"), "has no library.json and no adapter_config.json"),
    (("pull", "someone/tiny", "--output", "LIBRARY"), "exists already"),
    (
        ("list", "--library", "someone/nothing"),
        "there is no folder someone/nothing here, and fetching it from the hub failed",
    ),
]


def test_mistakes_are_one_line(
    run: Any, hub: HubServer, base_on_the_hub: str, library: ExpertLibrary, tmp_path: Path
) -> None:
    places = {"LIBRARY": str(library.folder), "OUTPUT": str(tmp_path / "output"), "LORA": str(tmp_path / "lora")}
    (tmp_path / "lora").mkdir()
    write_json(tmp_path / "lora" / "adapter_config.json", {"peft_type": "LORA"})
    for args, message in MISTAKES:
        code, out, err = run("experts", *(places.get(arg, arg) for arg in args))
        assert (code, out) == (1, ""), args
        (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert message in said
    assert [*hub.repositories] == [BASE]
    assert not (tmp_path / "output").exists()


def test_a_pull_that_is_broken_off_leaves_nothing_and_goes_on_later(
    run: Any, hub: HubServer, library: ExpertLibrary, tmp_path: Path
) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    hub.refused["b/adapter_model.safetensors"] = 403
    code, out, err = run("experts", "pull", "someone/mine", "--output", tmp_path / "pulled")
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(UserError):
        ExpertLibrary.from_pretrained("someone/mine")
    hub.refused.clear()
    code, _, err = run("experts", "pull", "someone/mine", "--output", tmp_path / "pulled")
    assert code == 0, err
    assert ExpertLibrary.open(tmp_path / "pulled").names == ["a", "b"]
