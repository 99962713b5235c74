"""Task files: both layouts, the official split, what is left out, and one line for what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from experts.outside.errors import UserError
from experts.outside.files import data_folder
from experts.text_to_lora.tasks import EXCLUDED, TaskData, Tasks, is_excluded, read_descriptions, read_tasks

TRAIN = ["task001_colours_naming", "task002_sums_adding", "task003_rhymes_finding", "task080_piqa_answer_generation"]
TEST = ["task004_jokes_explaining"]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


@pytest.fixture
def rows_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    splits = [*((name, "train") for name in TRAIN), *((name, "test") for name in TEST)]
    write_jsonl(
        folder / "tasks.jsonl",
        [
            {
                "task": name,
                "split": split,
                "Definition": [f"Do {name}."],
                "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}],
            }
            for name, split in splits
        ],
    )
    for split in ("train", "test"):
        rows = [
            {"task": name, "id": f"{name}-{i}", "input": f"in {i}", "output": [f"out {i}", "other"]}
            for name, own in splits
            if own == split
            for i in range(3)
        ]
        write_jsonl(folder / ("train.jsonl.gz" if split == "train" else "test.jsonl"), rows)
    return folder


@pytest.fixture
def upstream_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "upstream"
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "default").mkdir(parents=True)
    (folder / "splits" / "default" / "train_tasks.txt").write_text("\n".join([*TRAIN, "task999_not_here"]))
    (folder / "splits" / "default" / "test_tasks.txt").write_text("\n".join(TEST))
    for name in [*TRAIN, *TEST, "task005_in_neither_split"]:
        document = {
            "Definition": [f"Do {name}."],
            "Positive Examples": [{"input": "a", "output": "b"}],
            "Instances": [{"id": f"{name}-{i}", "input": f"in {i}", "output": [f"out {i}", "other"]} for i in range(3)],
        }
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_both_layouts_hold_the_same_tasks(rows_folder: Path, upstream_folder: Path) -> None:
    tasks = read_tasks(rows_folder)
    assert tasks == read_tasks(upstream_folder)
    assert [task.name for task in tasks] == sorted(TRAIN + TEST)
    assert tasks[0].descriptions == (tasks[0].definition,) == ("Do task001_colours_naming.",)
    assert tasks[0].examples == (("a", "b"),)
    assert tasks[0].instances[1].outputs == ("out 1", "other")


def test_splits_are_kept_and_benchmark_text_is_left_out(rows_folder: Path) -> None:
    tasks = TaskData(str(rows_folder), validation_tasks=1).load()
    names = [[task.name for task in part] for part in (tasks.train, tasks.validation, tasks.test)]
    assert sorted(names[0] + names[1]) == TRAIN[:3]
    assert len(names[1]) == 1
    assert names[2] == TEST
    fewer = TaskData(str(rows_folder), validation_tasks=1, train_tasks=1).load()
    assert [task.name for task in fewer.train] == names[0][:1]
    assert fewer.validation == tasks.validation
    assert fewer.learned() == fewer.train
    # Oracles and reconstruction learn from none of the training tasks, so that there may be few of them.
    held_out = TaskData(str(rows_folder), validation_tasks=3).load()
    assert (len(held_out.validation), held_out.test) == (3, tasks.test)
    with pytest.raises(UserError, match="all 3 training tasks are held out, and none is left to learn from"):
        held_out.learned()
    with pytest.raises(UserError, match="there are no training tasks"):
        Tasks([], [], tasks.test).learned()


def test_descriptions_come_from_a_file_of_their_own(rows_folder: Path, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "described.jsonl",
        [
            {"task": "x", "task_name": f"owner/{TRAIN[0]}", "descriptions": ["Say a colour.", "Colours.", "Hues."]},
            {"task": TEST[0], "descriptions": ["Explain a joke."]},
        ],
    )
    data = TaskData(str(rows_folder), str(tmp_path / "described.jsonl"), descriptions_per_task=2, validation_tasks=0)
    tasks = {task.name: task for task in (*data.load().train, *data.load().test)}
    assert tasks[TRAIN[0]].descriptions == ("Say a colour.", "Colours.")
    assert tasks[TRAIN[1]].descriptions == (f"Do {TRAIN[1]}.",)
    assert tasks[TEST[0]].descriptions == ("Explain a joke.",)


def test_several_sources_are_one(rows_folder: Path) -> None:
    both = TaskData(f"made, {rows_folder}").load()
    made, own = TaskData("made").load(), TaskData(str(rows_folder), validation_tasks=0).load()
    assert {task.name for task in both.train} == {task.name for tasks in (made, own) for task in tasks.train}
    assert both.validation == made.validation  # which are marked as such
    assert both.test == [*made.test, *own.test]
    for path, message in {
        "made, made": "two tasks are called 'address_",
        "made,": "names no tasks",
        "": "no tasks",
    }.items():
        with pytest.raises(UserError, match=message):
            TaskData(path).load()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tasks.jsonl", {"Definition": None}, "tasks.jsonl:1: the field 'Definition' is missing"),
        ("tasks.jsonl", {"task": None}, "tasks.jsonl:1: the field 'task' is missing"),
        ("tasks.jsonl", {"split": "dev"}, "tasks.jsonl:1: split must be train, validation or test"),
        ("tasks.jsonl", {"task": "task777_unheard_of"}, "task777_unheard_of has no instances"),
        ("tasks.jsonl", {"task": "../sums"}, r"jsonl:1: a task cannot be called '\.\./sums': its adapter's folder"),
        ("tasks.jsonl", {"task": ""}, "tasks.jsonl:1: a task cannot be called ''"),
        ("tasks.jsonl", {"task": "a\0"}, "tasks.jsonl:1: a task cannot be called"),
        ("tasks.jsonl", {"task": "long" * 60}, "tasks.jsonl:1: a task cannot be called"),
        ("tasks.jsonl", {"Positive Examples": 5}, "tasks.jsonl:1: the field 'Positive Examples' is not a list"),
        ("test.jsonl", {"input": None}, "test.jsonl:1: the field 'input' is missing"),
        ("test.jsonl", {"output": []}, "test.jsonl:1: the field 'output' is missing"),
        ("test.jsonl", {"task": 3}, "test.jsonl:1: the field 'task' is missing"),
    ],
)
def test_a_missing_field_is_named(rows_folder: Path, file: str, change: dict[str, Any], message: str) -> None:
    rows = [json.loads(line) for line in (rows_folder / file).read_text().splitlines()]
    write_jsonl(rows_folder / file, [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(UserError, match=message):
        read_tasks(rows_folder)


def test_upstream_files_are_checked_too(upstream_folder: Path) -> None:
    file = upstream_folder / "tasks" / f"{TRAIN[0]}.json"
    document = json.loads(file.read_text())
    for damaged, message in [
        ("{", "not JSON"),
        (json.dumps({"Definition": ["x"]}), "'Instances' is missing"),
        (json.dumps({**document, "Instances": [{"id": "1", "output": ["x"]}]}), "instance 0: the field 'input'"),
    ]:
        file.write_text(damaged)
        with pytest.raises(UserError, match=message):
            read_tasks(upstream_folder)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tasks"):
        read_tasks(tmp_path)
    with pytest.raises(UserError, match="no folder of tasks 'nowhere' here"):
        TaskData("nowhere").load()
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"d\.jsonl describes nothing"):
        read_descriptions(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_text('{"task": "a", "descriptions": [""]}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:1: the field 'descriptions'"):
        read_descriptions(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_text(2 * '{"task": "a", "descriptions": ["One of two."]}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:2: 'a' has a line already"):
        read_descriptions(tmp_path / "d.jsonl")


def test_descriptions_of_other_tasks_are_refused(rows_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "own.jsonl", [{"task": "sums", "descriptions": ["Add."]}])
    with pytest.raises(UserError, match=r"own\.jsonl describes none of the tasks of .*: it has 'sums'"):
        TaskData(str(rows_folder), str(tmp_path / "own.jsonl"), validation_tasks=0).load()


def test_descriptions_alone_are_tasks_without_instances(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "own.jsonl", [{"task": "sums", "descriptions": ["Add.", "Sums.", "Plus."]}])
    (task,) = TaskData(None, str(tmp_path / "own.jsonl"), descriptions_per_task=2).load().train
    assert (task.name, task.descriptions, task.instances) == ("sums", ("Add.", "Sums."), ())
    shipped = TaskData(None, "smollm2-135m/t2l/descriptions.jsonl").load()  # found beside the network that learned them
    assert {"stories", "groups", "relations", "sums", "mathematics", "other"} == {task.name for task in shipped.train}
    with pytest.raises(UserError, match="there are no tasks: "):
        TaskData(None).load()


def test_the_excluded_list_goes_by_number() -> None:
    assert is_excluded("task033_winogrande_answer_generation")
    assert is_excluded("task1518_limit_answer_generation")
    assert not is_excluded("task1033_something")
    assert not is_excluded("addition")
    assert len(EXCLUDED) == 26


@pytest.mark.skipif(data_folder() is None, reason="SELFADAPT_DATA is not set")
def test_the_real_tasks() -> None:
    tasks = TaskData(descriptions="text_to_lora/tasks.jsonl.gz").load()
    assert (len(tasks.train), len(tasks.validation), len(tasks.test)) == (61, 8, 10)
    assert sum(len(task.descriptions) == 128 for task in tasks.train + tasks.validation) == 41
    assert all(task.instances and task.examples for task in tasks.train)
    folder = data_folder()
    assert folder is not None
    official = {
        split: {
            json.loads(line)["task"]
            for line in (folder / f"natural_instructions/official_{split}_tasks.jsonl").read_text().splitlines()
        }
        for split in ("train", "test")
    }
    assert {task.name for task in tasks.test} <= official["test"]
    assert {task.name for task in tasks.train + tasks.validation} <= official["train"]
