"""Experts and libraries on a hub that answers over HTTP: pushed whole, pulled whole, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, ModelHubMixin
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import LlamaForCausalLM

from experts.exchange.export import lora_twin
from experts.exchange.hub import push_folder
from experts.exchange.repository import fetch
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from tests.hub_server import HubServer

BASE = "someone/tiny"
IDS = torch.arange(3, 43).view(2, 20)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_library_comes_back_as_it_was_pushed(hub: HubServer, library: ExpertLibrary) -> None:
    (library.path("a") / "completions.jsonl").write_text('{"text": "a sample"}\n')
    before = contents(library.folder)
    assert isinstance(library, ModelHubMixin)
    url = library.push_to_hub("someone/mine", base_model=BASE, license="mit", commit_message="First")
    assert url.startswith(f"{hub.url}/someone/mine/commit/")
    assert contents(library.folder) == before
    repository = hub.repositories["someone/mine"]
    assert len(repository.commits) == 2  # the empty one, and all of it
    assert not any("completions" in path or path == "config.json" for path in repository.files)
    pulled = ExpertLibrary.from_pretrained("someone/mine")
    assert (pulled.names, pulled.fingerprint, pulled.base) == (library.names, library.fingerprint, BASE)
    assert pulled.descriptions() == library.descriptions()
    for name in library.names:
        assert pulled.config(name).base_model_name_or_path == BASE
        assert all(torch.equal(z, pulled.z(name)[matrix]) for matrix, z in library.z(name).items())
        assert ModelCard(pulled.card(name)).data.license == "mit"
    card = ModelCard.load("someone/mine")
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("selfadapt", BASE, "mit")
    assert 'library="someone/mine"' in card.text
    assert "| `b` | Questions about animals. |" in card.text


def test_a_second_push_is_one_commit_that_takes_what_has_gone(hub: HubServer, library: ExpertLibrary) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    repository = hub.repositories["someone/mine"]
    repository.files["notes.txt"] = repository.files["a/notes.txt"] = b"the owner's own"
    library.remove("a")
    library.push_to_hub("someone/mine", base_model=BASE)
    assert len(repository.commits) == 3
    assert {path for path in repository.files if path.startswith("a/")} == {"a/notes.txt"}
    assert "notes.txt" in repository.files
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["b"]


def test_branches_and_private_repositories(
    hub: HubServer, library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.push_to_hub("someone/mine", base_model=BASE, private=True)
    library.remove("a")
    library.push_to_hub("someone/mine", base_model=BASE, branch="smaller")
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["a", "b"]
    assert ExpertLibrary.from_pretrained("someone/mine", revision="smaller").names == ["b"]
    with pytest.raises(UserError, match="cannot pull someone/mine: it has no such revision"):
        ExpertLibrary.from_pretrained("someone/mine", revision="larger")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=r"no such repository on the hub that you may read.*log in"):
        ExpertLibrary.from_pretrained("someone/mine", force_download=True, cache_dir=library.folder / "empty")


def test_what_was_pulled_is_there_without_the_hub(
    hub: HubServer, library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    ExpertLibrary.from_pretrained("someone/mine")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["a", "b"]
    assert ExpertLibrary.from_pretrained("someone/mine", local_files_only=True).names == ["a", "b"]
    with pytest.raises(UserError, match=r"cannot pull someone/other: the hub \(http.* does not answer, and its cache"):
        ExpertLibrary.from_pretrained("someone/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["a", "b"]
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        ExpertLibrary.from_pretrained("someone/other")
    with pytest.raises(UserError, match=r"cannot push to someone/mine: [^,]*$"):  # no word of a cache
        library.push_to_hub("someone/mine", base_model=BASE)


def test_the_hubs_cache_is_not_changed(hub: HubServer, library: ExpertLibrary, tmp_path: Path) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    pulled = ExpertLibrary.from_pretrained("someone/mine")
    for change in (lambda: pulled.remove("a"), lambda: pulled.add(tmp_path / "a", "again")):
        with pytest.raises(UserError, match="is in the hub's cache and must not be changed"):
            change()
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["a", "b"]


def test_an_experts_folder_and_an_expert_that_was_calculated(hub: HubServer, library: ExpertLibrary) -> None:
    folder = library.path("b")
    (folder / "README.md").write_text('# b\n\n```python\n>>> "path/to/b"\n```\n')
    push_folder(folder, "someone/animals", base_model=BASE)
    card = ModelCard.load("someone/animals")
    assert (card.data.base_model, card.text) == (BASE, '# b\n\n```python\n>>> "someone/animals"\n```\n')
    expert = Expert.from_pretrained("someone/animals")
    assert (expert.base, expert.description) == (BASE, "Questions about animals.")
    half = 0.5 * expert
    half.push_to_hub("someone/half", license="apache-2.0")
    again = Expert.from_pretrained("someone/half")
    assert all(torch.equal(z, again.z[matrix]) for matrix, z in half.z.items())
    assert ModelCard.load("someone/half").data.tags == ["svf", "selfadapt"]


def test_plain_peft_loads_from_the_hub_by_name_alone(
    hub: HubServer, library: ExpertLibrary, tiny_folder: Path, tiny_model: LlamaForCausalLM
) -> None:
    HfApi().create_repo(BASE)
    HfApi().create_commit(
        BASE,
        [_addition(path) for path in tiny_folder.iterdir() if path.suffix in (".json", ".safetensors")],
        commit_message="A base",
    )
    library.push_to_hub("someone/mine", base_model=BASE)
    push_folder(library.path("b"), "someone/animals", base_model=BASE, beside=lora_twin(tiny_model))
    wanted = logits(library.expert("b").attach(tiny_model).eval())
    for name, options in {"someone/animals": {}, "someone/mine": {"subfolder": "b"}}.items():
        expert = PeftModel.from_pretrained(_plain(tiny_folder), name, **options)
        torch.testing.assert_close(logits(expert), wanted)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained("someone/animals")), wanted)
    twin = PeftModel.from_pretrained(_plain(tiny_folder), "someone/animals", subfolder="lora")
    assert twin.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(twin), wanted, atol=1e-4, rtol=0)


def _addition(path: Path) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path.name, path)


def _plain(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_twin_goes_with_its_expert_and_is_made_anew(
    hub: HubServer, library: ExpertLibrary, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    beside = lora_twin(tiny_model)
    with pytest.raises(UserError, match="a has no LoRA beside it: this expert adapts so many singular values"):
        library.push_to_hub("someone/mine", base_model=BASE, beside=beside)
    assert not hub.repositories  # nothing was made, as nothing was right
    library.remove("a")
    library.push_to_hub("someone/mine", base_model=BASE, beside=beside)
    pulled = ExpertLibrary.from_pretrained("someone/mine")
    config = json.loads((pulled.path("b") / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 8, BASE)
    assert not (library.path("b") / "lora").exists()
    for parameter in tiny_model.parameters():
        parameter.data.mul_(1.1)
    with pytest.raises(UserError, match="belongs to a base with fingerprint"):
        library.push_to_hub("someone/mine", base_model=BASE, beside=lora_twin(tiny_model))
    library.push_to_hub("someone/mine", base_model=BASE)
    assert not any("lora" in path for path in hub.repositories["someone/mine"].files)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("someone/mine", {"base_model": None}, r"the library names the base '.*tiny', which is not a model on the hub"),
    ("someone/mine", {"base_model": "tiny"}, "the base 'tiny' must be a model on the hub"),
    ("other/mine", {}, "cannot push to other/mine: your token cannot write there"),
    ("some one/mine", {}, "that is not the name of a repository"),
    ("someone/mine", {"token": "hf_wrong"}, "cannot push to someone/mine: you are not logged in, or your token"),
    ("someone/mine", {"token": True}, "you are not logged in; run hf auth login"),
]


def test_what_cannot_be_pushed_is_said_in_one_line_and_nothing_is(
    hub: HubServer, library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo, options, message in REFUSALS:
        if options.get("token"):
            monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(UserError, match=message) as refusal:
            library.push_to_hub(repo, **{"base_model": BASE, **options})
        assert "\n" not in str(refusal.value)
    assert not hub.repositories


def test_a_push_that_is_broken_off_leaves_what_was_there(hub: HubServer, library: ExpertLibrary) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    before = dict(hub.repositories["someone/mine"].files)
    library.remove("a")
    for part, status in {"/large/": 403, "/commit/": 413, "validate-yaml": 400}.items():
        hub.refused = {part: status}
        with pytest.raises(UserError, match="cannot push to someone/mine: ") as refusal:
            library.push_to_hub("someone/mine", base_model=BASE)
        assert "\n" not in str(refusal.value)
        assert hub.repositories["someone/mine"].files == before


def test_what_is_something_else_is_not_downloaded(hub: HubServer, library: ExpertLibrary) -> None:
    push_folder(library.path("b"), "someone/animals", base_model=BASE)
    hub.requests.clear()
    with pytest.raises(UserError, match=r"someone/animals on the hub is of another kind"):
        ExpertLibrary.from_pretrained("someone/animals")
    assert not any("/resolve/" in request for request in hub.requests)
    with pytest.raises(
        UserError, match=r"there is no folder someone/nothing here, and fetching it from the hub failed: cannot pull"
    ):
        ExpertLibrary.from_pretrained("someone/nothing")
    with pytest.raises(UserError, match=r"is not an expert: it has no adapter_config\.json"):
        push_folder(library.folder, "someone/animals")
    with pytest.raises(UserError, match="that is not the name of a repository"):
        fetch("someone/a--b", "library.json")


def test_a_damaged_repository_is_refused_as_a_damaged_folder_is(hub: HubServer, library: ExpertLibrary) -> None:
    library.push_to_hub("someone/mine", base_model=BASE)
    hub.repositories["someone/mine"].files["library.json"] = b'{"base": "x", "fingerprint": "y", "experts": ["../a"]}'
    with pytest.raises(UserError, match="cannot name an expert"):
        ExpertLibrary.from_pretrained("someone/mine")


def test_a_folder_of_that_name_comes_first(
    hub: HubServer, library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    library.save_pretrained(tmp_path / "someone" / "mine")
    hub.requests.clear()
    assert ExpertLibrary.from_pretrained("someone/mine").names == ["a", "b"]
    assert not hub.requests
