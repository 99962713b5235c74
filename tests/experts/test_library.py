"""Experts on disk: what is refused, and that nothing is lost by a refusal."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file

from experts.library import ExpertLibrary, load_expert
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.fingerprint import fingerprint, sketch
from experts.training.card import Card, Origin, write_trained
from experts.training.statistics import Accuracy
from selfadapt.named_experts import add_expert


def make_expert(folder: Path, base: Any, name: str = "letters") -> Path:
    model = get_peft_model(base, SVFConfig(rank=4))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    origin = Origin("tiny", fingerprint(base), sketch(model), "Letters.", name)
    card = Card(
        name=name,
        origin=origin,
        recipe={"steps": 1},
        parameters=56,
        best_step=1,
        train_seconds=1.0,
        validations={0: Accuracy(1, 8), 1: Accuracy(3, 8)},
        base_accuracy=Accuracy(1, 8),
        expert_accuracy=Accuracy(3, 8),
        constant_accuracy=Accuracy(2, 8),
    )
    (folder / name).mkdir(parents=True)
    write_trained(folder / name, model, origin, card)
    model.unload()
    return folder / name


@pytest.fixture
def expert(tmp_path: Path, tiny_model: Any) -> Path:
    return make_expert(tmp_path, tiny_model)


@pytest.fixture
def library(tmp_path: Path, tiny_model: Any) -> ExpertLibrary:
    return ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))


def test_add_open_and_remove(library: ExpertLibrary, expert: Path) -> None:
    assert library.add(expert) == "letters"
    assert library.add(expert, "again") == "again"
    opened = ExpertLibrary.open(library.folder)
    assert opened == library
    assert opened.names == ["letters", "again"]
    assert opened.config("letters").description == "Letters."
    z = opened.z("letters")
    assert len(z) == 14
    assert all(torch.equal(vector, torch.full((4,), 1.25)) for vector in z.values())
    opened.remove("letters")
    assert ExpertLibrary.open(library.folder).names == ["again"]
    assert not (library.folder / "letters").exists()


def test_a_library_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, said in (
        (tmp_path / "file", "is a file; a library is a folder"),
        (tmp_path / "file" / "x", "cannot write"),
    ):
        with pytest.raises(UserError, match=said):
            ExpertLibrary.create(folder, "tiny", "0")


def test_an_empty_library_opens(library: ExpertLibrary) -> None:
    assert len(ExpertLibrary.open(library.folder)) == 0


NOT_FREE = ["", "none", "Prompt", "embedding", "t2l", "../evil", ".hidden", "a b", "math-v1.0", "-x", "a/b", "__base__"]


@pytest.mark.parametrize("name", [*NOT_FREE, "keys", "train", "nul", "COM1", "größe", "x" * 101])
def test_names_that_are_not_free(library: ExpertLibrary, expert: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name an expert"):
        library.add(expert, name)
    assert ExpertLibrary.open(library.folder).names == []
    path = library.folder / "library.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "experts": [name]}))
    with pytest.raises(UserError, match=r"library\.json: .* cannot name an expert"):
        ExpertLibrary.open(library.folder)


@pytest.mark.parametrize("name", ["mlp", "model", "0", "q_proj", "svf_z", "default", "x" * 100])
def test_experts_may_be_called_like_modules(library: ExpertLibrary, expert: Path, tiny_model: Any, name: str) -> None:
    library.add(expert, name)
    library.add(expert, "second")
    model = ExpertLibrary.open(library.folder).load(tiny_model)
    layers = [module for module in model.modules() if isinstance(module, SVFLinear)]
    assert [*model.peft_config] == [name, "second"]
    assert all((layer.svf_z[each] == 1.25).all() for layer in layers for each in (name, "second"))
    assert not any(p.requires_grad for p in model.parameters())


def test_a_name_is_taken_once(library: ExpertLibrary, expert: Path) -> None:
    library.add(expert)
    for name in ("letters", "Letters"):  # some file systems hold one folder only of the two
        with pytest.raises(UserError, match="has an expert 'letters' already"):
            library.add(expert, name)


def test_an_unknown_expert_names_the_nearest(library: ExpertLibrary, expert: Path) -> None:
    library.add(expert)
    with pytest.raises(UserError, match="did you mean 'letters'"):
        library.path("leters")


def test_another_base_is_refused_with_both_fingerprints(library: ExpertLibrary, expert: Path, tiny_model: Any) -> None:
    wanted = fingerprint(tiny_model)
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    found = fingerprint(tiny_model)
    for refusal in (lambda: library.check_base(tiny_model), lambda: load_expert(tiny_model, expert)):
        with pytest.raises(UserError, match=rf"{wanted}.*{found}"):
            refusal()
    other = ExpertLibrary.create(library.folder.with_name("other"), "other", found)
    with pytest.raises(UserError, match=rf"{wanted}.*{found}"):
        other.add(expert)


def test_damaged_files_are_named_and_not_loaded(library: ExpertLibrary, expert: Path, tiny_model: Any) -> None:
    path = expert / "adapter_model.safetensors"
    tensors, data = load_file(path), path.read_bytes()
    key = next(iter(tensors))

    def refused(match: str) -> None:
        for use in (lambda: library.add(expert), lambda: load_expert(tiny_model, expert)):
            with pytest.raises(UserError, match=match):
                use()
        assert ExpertLibrary.open(library.folder).names == []

    path.write_bytes(data[:-9])
    refused(r"adapter_model\.safetensors is damaged")
    save_file({**tensors, key: torch.full((4,), float("nan"))}, path)
    refused("not finite")
    save_file({**tensors, "lora_A.weight": torch.ones(2, 2)}, path)
    refused("not a z vector")
    save_file({}, path)
    refused("no z vectors")
    path.unlink()
    refused(r"no adapter_model\.safetensors")


def test_vectors_that_do_not_fit_the_base_are_refused(expert: Path, tiny_model: Any) -> None:
    path = expert / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(iter(tensors))
    save_file({**tensors, key: torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"3 values for .* which needs 4"):
        load_expert(tiny_model, expert)
    save_file({**tensors, "base_model.model.model.layers.9.mlp.up_proj.svf_z": torch.ones(4)}, path)
    with pytest.raises(UserError, match="does not have"):
        load_expert(tiny_model, expert)


def test_other_adapters_are_refused(tmp_path: Path, tiny_model: Any, library: ExpertLibrary) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    get_peft_model(tiny_model, config).save_pretrained(tmp_path / "ia3")
    with pytest.raises(UserError, match="IA3 adapter"):
        library.add(tmp_path / "ia3")
    with pytest.raises(UserError, match="no such folder"):
        library.add(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        library.add(tmp_path / "nothing")


def test_damaged_libraries_are_refused(library: ExpertLibrary, expert: Path, tmp_path: Path) -> None:
    library.add(expert)
    path = library.folder / "library.json"
    document = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        ExpertLibrary.open(library.folder)
    path.write_text(json.dumps({**document, "experts": ["letters", "gone"]}))
    with pytest.raises(UserError, match="gone"):
        ExpertLibrary.open(library.folder)
    with pytest.raises(UserError, match="no such folder"):
        ExpertLibrary.open(tmp_path / "nowhere")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(UserError, match=r"no library\.json"):
        ExpertLibrary.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not empty"):
        ExpertLibrary.create(library.folder, "tiny", "0")


def test_a_rounding_of_the_base_is_accepted_and_said_once(
    tiny_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.nn.init.ones_(tiny_model.model.layers[0].mlp.up_proj.weight)  # of which nothing has been said yet
    expert = make_expert(tmp_path, tiny_model)
    found = fingerprint(tiny_model)
    library = ExpertLibrary.create(tmp_path / "library", "tiny", found)
    library.add(expert)  # brings the sketch along
    half = tiny_model.half()
    assert fingerprint(half) != found
    for _ in range(2):
        ExpertLibrary.open(library.folder).check_base(half)
    assert (
        caplog.text.count(f"the bases with fingerprints {fingerprint(half)} and {found} are roundings of one base") == 1
    )
    assert load_expert(half, expert).active_adapter == "default"


def test_an_expert_of_a_rounding_joins_the_library(tmp_path: Path, tiny_model: Any) -> None:
    make_expert(tmp_path, tiny_model, "a")
    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model), sketch(tiny_model))
    library.add(tmp_path / "a")
    half = tiny_model.half()
    make_expert(tmp_path, half, "b")
    library.add(tmp_path / "b")
    assert library.names == ["a", "b"]
    assert library.config("b").base_fingerprint == fingerprint(half) != library.fingerprint
    assert (library.expert("a") + library.expert("b")).fingerprint == library.fingerprint


@pytest.fixture
def unmarked(tmp_path: Path, tiny_model: Any) -> Path:
    """An expert as PEFT saves it after a loop of one's own."""
    model = get_peft_model(tiny_model, SVFConfig(rank=4))
    model.save_pretrained(str(tmp_path / "own"), save_embedding_layers=False)
    model.unload()
    return tmp_path / "own"


def test_an_expert_of_ones_own_loop_is_told_its_base(library: ExpertLibrary, unmarked: Path, tiny_model: Any) -> None:
    with pytest.raises(UserError, match=r"own does not say which base it was trained on; name that base$"):
        library.add(unmarked)
    before = (unmarked / "adapter_config.json").read_bytes()
    assert library.add(unmarked, base=tiny_model) == "own"
    assert (unmarked / "adapter_config.json").read_bytes() == before
    assert library.config("own").base_fingerprint == library.fingerprint
    assert library.config("own").base_model_name_or_path == "tiny"
    assert ExpertLibrary.open(library.folder).load(tiny_model).active_adapter == "own"


def test_a_base_that_it_does_not_fit_is_refused(library: ExpertLibrary, unmarked: Path, tiny_model: Any) -> None:
    other = type(tiny_model)(type(tiny_model.config)(**{**tiny_model.config.to_dict(), "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"adapts model\.layers\.1.*does not have"):
        library.add(unmarked, base=other)
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.neg_()
    with pytest.raises(UserError, match="belongs to a base with fingerprint"):
        library.add(unmarked, base=tiny_model)
    assert ExpertLibrary.open(library.folder).names == []


def test_two_open_libraries_of_one_folder_lose_nothing(library: ExpertLibrary, expert: Path) -> None:
    other = ExpertLibrary.open(library.folder)
    library.add(expert, "a")
    other.add(expert, "b")
    library.add(expert, "c")
    assert ExpertLibrary.open(library.folder).names == library.names == ["a", "b", "c"]
    other.remove("a")
    assert ExpertLibrary.open(library.folder).names == other.names == ["b", "c"]
    with pytest.raises(UserError, match="has an expert 'c' already"):
        other.add(expert, "c")
    with pytest.raises(UserError, match="unknown expert 'a'"):
        library.remove("a")


ADDER = """
import sys
from experts.library import ExpertLibrary
library = ExpertLibrary.open(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
for name in sys.argv[3:]:
    library.add(sys.argv[2], name)
"""


@pytest.mark.long
def test_programs_that_add_at_once_lose_nothing(library: ExpertLibrary, expert: Path) -> None:
    names = [[f"{program}{number}" for number in range(5)] for program in "abc"]
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(library.folder), str(expert), *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in names
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
    for program in programs:
        program.communicate("\n")
        assert program.returncode == 0
    assert sorted(ExpertLibrary.open(library.folder).names) == sorted(name for own in names for name in own)


def test_what_a_killed_program_leaves_behind_is_in_nobodys_way(library: ExpertLibrary, expert: Path) -> None:
    shutil.copytree(expert, library.folder / "letters")  # copied, but not listed
    (library.folder / ".letters.x1").mkdir()
    (library.folder / ".library.json.x2").write_text("{")
    assert ExpertLibrary.open(library.folder).names == []
    assert library.add(expert) == "letters"
    assert ExpertLibrary.open(library.folder).names == ["letters"]
    (library.folder.with_name("new")).mkdir()
    (library.folder.with_name("new") / ".library.json.x3").write_text("{")
    assert ExpertLibrary.create(library.folder.with_name("new"), "tiny", library.fingerprint).names == []


def test_a_library_does_not_copy_the_folder_that_it_lies_in(library: ExpertLibrary, expert: Path) -> None:
    inside = ExpertLibrary.create(expert / "library", "tiny", library.fingerprint)
    with pytest.raises(UserError, match="lies inside"):
        inside.add(expert)


def test_a_folder_that_can_be_no_library_stays_as_it_is(library: ExpertLibrary, expert: Path) -> None:
    before = sorted(expert.iterdir())
    with pytest.raises(UserError, match="not empty"):
        ExpertLibrary.create(expert, "tiny", library.fingerprint)
    for inside in (expert, expert / "library"):
        with pytest.raises(UserError, match="lies inside"):
            add_expert(expert, inside)
    assert sorted(expert.iterdir()) == before
    (expert / ".library.lock").touch()
    library.add(expert)
    assert not (library.folder / "letters" / ".library.lock").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": "abc"}, "must hold base, fingerprint and a list of experts"),
        ({"experts": {"letters": 1}}, "must hold"),
        ({"base": 3}, "must hold"),
        ({"fingerprint": None}, "must hold"),
        ({"experts": [3]}, "3 cannot name an expert"),
        ({"experts": ["../letters"]}, "'../letters' cannot name an expert"),
        ({"experts": ["/etc"]}, "'/etc' cannot name an expert"),
        ({"experts": ["a/b"]}, "'a/b' cannot name an expert"),
        ({"experts": [""]}, "'' cannot name an expert"),
        ({"experts": ["letters", "letters"]}, "names the expert 'letters' twice"),
    ],
)
def test_lists_that_are_none_are_one_line(
    library: ExpertLibrary, expert: Path, change: dict[str, Any], message: str
) -> None:
    library.add(expert)
    path = library.folder / "library.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        ExpertLibrary.open(library.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": None}, "is not a PEFT adapter"),
        ({"peft_type": ["SVF"]}, "not an SVF expert"),
        ({"rank": 0}, "rank cannot be 0"),
        ({"rank": "8"}, "rank cannot be '8'"),
        ({"rank": True}, "rank cannot be True"),
        ({"rank_pattern": [1]}, "rank_pattern cannot be"),
        ({"rank_pattern": {"a": 0}}, "rank_pattern cannot be"),
        ({"target_modules": 3}, "target_modules cannot be 3"),
        ({"target_modules": [3]}, "target_modules cannot be"),
        ({"base_fingerprint": 3}, "base_fingerprint cannot be 3"),
        ({"description": ["a"]}, "description cannot be"),
        ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
    ],
)
def test_configurations_that_are_none_are_one_line(
    library: ExpertLibrary, expert: Path, change: dict[str, Any], message: str
) -> None:
    path = expert / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        library.add(expert)
    assert "\n" not in str(caught.value)
    assert not (library.folder / "letters").exists()


def test_a_configuration_that_an_editor_has_marked_is_read(
    library: ExpertLibrary, expert: Path, tiny_model: Any
) -> None:
    path = expert / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert library.add(expert) == "letters"
    assert "letters" in library.load(tiny_model).peft_config


def test_a_link_to_nowhere_is_left_behind(library: ExpertLibrary, expert: Path) -> None:
    (expert / "log").symlink_to(expert / "gone")
    assert library.add(expert) == "letters"
    assert not (library.path("letters") / "log").is_symlink()


def test_fields_of_newer_versions_are_passed_over(library: ExpertLibrary, expert: Path) -> None:
    path = expert / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_tomorrow": {"a": 1}}))
    assert library.add(expert) == "letters"


def test_vectors_and_configuration_must_speak_of_the_same(expert: Path, tiny_model: Any) -> None:
    path, vectors = expert / "adapter_config.json", expert / "adapter_model.safetensors"
    before, tensors = path.read_text(), load_file(vectors)
    path.write_text(json.dumps(json.loads(before) | {"target_modules": ["up_proj"]}))
    with pytest.raises(UserError, match=r"only adapter_model\.safetensors mentions model\.layers\.0\.mlp\.down_proj"):
        load_expert(copy.deepcopy(tiny_model), expert)
    path.write_text(before)
    save_file({key: z for key, z in tensors.items() if "up_proj" not in key}, vectors)
    with pytest.raises(UserError, match=r"only adapter_config\.json mentions model\.layers\.0\.mlp\.up_proj"):
        load_expert(tiny_model, expert)


def test_two_libraries_on_one_base_do_not_overwrite_each_other(
    library: ExpertLibrary, expert: Path, tiny_model: Any, tmp_path: Path
) -> None:
    library.add(expert, "a")
    other = ExpertLibrary.create(tmp_path / "other", "tiny", library.fingerprint)
    (-library.expert("a")).write(tmp_path / "minus")
    other.add(tmp_path / "minus", "a")
    library.load(tiny_model)
    with pytest.raises(UserError, match="already carries an expert 'a', but not the one in"):
        other.load(tiny_model)
    library.load(tiny_model)  # the same once more
