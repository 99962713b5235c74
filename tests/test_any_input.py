"""Whatever stands in a file that a person gives: a result, or a `UserError` of one line.

A failure prints the input and how to see it again (`@reproduce_failure`, `--hypothesis-seed`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from dispatch.embedding import FILE as PROMPTS
from dispatch.embedding import read_prompts
from experts.domains.jsonl import Jsonl
from experts.exchange.lora_folder import peft_type, read_lora
from experts.expert import Expert, read_config, read_z
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.outside.reading import read_json, read_lines, read_objects
from experts.svf.fingerprint import FILE as SKETCH
from experts.svf.fingerprint import Sketch, read_sketch, write_sketch
from experts.text_to_lora.reconstruction import read_targets
from experts.text_to_lora.tasks import read_descriptions, read_tasks
from selfadapt.dispatch_report import read_labelled
from selfadapt.grid.results import read_results
from selfadapt.recipes import read_recipe

CONFIG = Expert({"a": torch.ones(3)}, "tiny", "0" * 16, "Letters.").config.to_dict()
LORA = {
    "peft_type": "LORA",
    "base_model_name_or_path": "tiny",
    "r": 2,
    "lora_alpha": 4,
    "alpha_pattern": {"a": 1, "b|c": 2.5},
    "rank_pattern": {"a": 1},
    "use_rslora": False,
    "bias": "none",
    "init_lora_weights": True,
}
LORA_FILE = save(
    {"base_model.model.a.lora_A.weight": torch.ones(2, 3), "base_model.model.a.lora_B.weight": torch.ones(4, 2)}
)
RECIPE = {
    "model": "tiny",
    "dtype": "float32",
    "domain": {"kind": "reasoning_gym", "name": "n", "description": "S.", "dataset": "chain_sum", "answer_in": "exact"},
    "adapt": {"method": "svf", "rank": 8, "target_modules": "all-linear"},
    "training": {"objective": "reinforce", "learning_rate": 0.05, "steps": 2, "prompts_per_step": 2},
    "test_size": 4,
}
ROW = {"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "choices": ["2"], "id": "a"}
TASK = {"task": "t", "split": "train", "Definition": ["Add."], "Positive Examples": [{"input": "1", "output": "2"}]}
INSTANCE = {"task": "t", "id": "1", "input": "1", "output": ["2"]}


def jsons() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    return st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@st.composite
def changed(draw: Callable[..., Any], document: Any) -> Any:
    """A document with a part replaced, left out or added; or another one altogether."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 9)) == 0:
        return draw(jsons())
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = draw(st.sampled_from(keys))
    copied = document.copy()
    what = draw(st.integers(0, 4))
    if what == 0:
        del copied[key]
    elif what == 1 and isinstance(copied, dict):
        copied[draw(st.text(max_size=5))] = draw(jsons())
    else:
        copied[key] = draw(changed(document[key]))
    return copied


@st.composite
def garbled(draw: Callable[..., Any], data: bytes) -> bytes:
    """Bytes with a piece cut out and others put in, or cut off."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 20)) | st.just(len(data)))
    return data[:start] + draw(st.binary(max_size=9)) + data[end:]


def dumped(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def files(*documents: Any, dump: Callable[[Any], str] = dumped) -> st.SearchStrategy[bytes]:
    """Files with one document a line: changed, garbled, or of nothing but bytes."""
    whole = "\n".join(map(dump, documents)).encode()
    lines = st.tuples(*map(changed, documents)).map(
        lambda changed: "\n".join(map(dump, changed)).encode(errors="surrogatepass")
    )
    return lines | garbled(whole) | st.binary(max_size=40) | st.just(whole)


def survives(read: Callable[[], Any]) -> None:
    said = "one line"
    try:
        result = read()
        if isinstance(result, Iterator):
            list(result)
    except UserError as error:
        said = str(error)
    assert said.strip()
    assert "\n" not in said


anything = settings(
    max_examples=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@anything
@given(files(ROW))
@example(b"[" * 100_000)
@example(b'{"a": "\\ud800"}')
def test_texts_json_and_json_lines(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for read in (read_lines, read_objects, read_json):
        survives(lambda read=read: read(path))


@anything
@given(files(ROW, ROW), st.sampled_from(["exact", "last_number", "choice", "last_word"]))
def test_a_domain_of_ones_own(tmp_path: Path, data: bytes, judge: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    domain = Jsonl(name="own", description="Own.", path=str(path), judged_by=judge, test_path=str(path))
    survives(domain.rows)
    survives(lambda: domain.load("test"))


@anything
@given(files({"weights": {"a": 0.5, "b": 0.25}, "per_matrix": {"m": {"a": 1.0, "b": 0.0}}}))
@example(b'{"weights": {"a": 1' + b"0" * 400 + b"}}")
def test_mixtures(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "MIX.json"
    path.write_bytes(data)
    survives(lambda: Mixture.read(path))


@anything
@given(files({"base": "tiny", "fingerprint": "0" * 16, "experts": ["a"]}))
def test_libraries(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "library"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    (folder / "a" / "adapter_config.json").write_text("{}")
    (folder / "library.json").write_bytes(data)
    survives(lambda: ExpertLibrary.open(folder))


@anything
@given(files({"prompt": "1?", "label": "a"}, {"prompt": "1?", "label": "base"}))
def test_labelled_prompts(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_bytes(data)
    survives(lambda: read_labelled(path, ExpertLibrary(tmp_path, "tiny", "0", ["a"])))


@anything
@given(files(CONFIG))
@pytest.mark.filterwarnings("ignore")
def test_configurations_of_adapters(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "adapters" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(data)
    save_file({"base_model.model.a.svf_z": torch.ones(3)}, folder / "adapter_model.safetensors")
    survives(lambda: read_config(folder))
    survives(lambda: Expert.read(folder))
    survives(lambda: read_targets(folder.parent))


def tensors(folder: Path) -> bytes:
    save_file({"base_model.model.a.svf_z": torch.ones(3)}, folder / "whole", metadata={"encoder": "e"})
    return (folder / "whole").read_bytes()


@anything
@given(st.data())
def test_tensors(tmp_path: Path, data: Any) -> None:
    write_sketch(tmp_path, Sketch(torch.ones(2, 16), "0"))
    for name, whole, read in (
        ("adapter_model.safetensors", tensors(tmp_path), read_z),
        (PROMPTS, tensors(tmp_path), read_prompts),
        (SKETCH, (tmp_path / SKETCH).read_bytes(), read_sketch),
    ):
        (tmp_path / name).write_bytes(data.draw(garbled(whole), label=name))
        survives(lambda read=read: read(tmp_path))


@anything
@given(files(LORA), st.data())
@pytest.mark.filterwarnings("ignore")
def test_loras(tmp_path: Path, config: bytes, data: Any) -> None:
    (tmp_path / "adapter_config.json").write_bytes(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(data.draw(garbled(LORA_FILE), label="tensors"))
    survives(lambda: peft_type(tmp_path))
    survives(lambda: read_lora(tmp_path))


@anything
@given(files(RECIPE, dump=yaml.safe_dump) | st.text(max_size=40).map(str.encode))
@example(b"a: 2024-99-99")
@example(b"a: !!timestamp x")
@example(b"? [a, b]\n: c")
@example(b"&a [*a]")
def test_recipes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    survives(lambda: read_recipe(path))


@anything
@given(files(TASK), files(INSTANCE), files({"task": "t", "descriptions": ["Add."]}))
def test_tasks(tmp_path: Path, tasks: bytes, instances: bytes, descriptions: bytes) -> None:
    for name, data in (("tasks", tasks), ("train", instances), ("descriptions", descriptions)):
        (tmp_path / f"{name}.jsonl").write_bytes(data)
    survives(lambda: read_tasks(tmp_path))
    survives(lambda: read_descriptions(tmp_path / "descriptions.jsonl"))


@anything
@given(files({"version": 1, "scores": "01", "right": 1, "n": 2, "method": "svf"}))
def test_results(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(data)
    survives(lambda: read_results(path))
