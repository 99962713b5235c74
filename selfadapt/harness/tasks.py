"""Loads lm-eval's tasks by name, and says in one line what is wrong with a name, a task file or its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from experts.outside.errors import UserError, unknown
from experts.outside.reading import read_objects


def load_tasks(
    names: Sequence[str], include_path: Path | None = None, run_unsafe_code: bool = False
) -> tuple[TaskManager, list[Task | Group]]:
    """Loads tasks, groups and tags with their data.

    Args:
        names: names or patterns (`arc_*`), of lm-eval's own tasks or of those in `include_path`.
        include_path: a folder of task files; its tasks win over lm-eval's own of the same name.
        run_unsafe_code: whether tasks may run programs that the model writes, which lm-eval does unguarded.

    Raises:
        UserError: if there is no task of a name, with the nearest names; if a task file, or data that it names, cannot
            be read; if a line of a local file lacks a field that the task shows the model; if a task runs programs
            that the model writes and may not.
    """
    if not names:
        raise UserError("there is no task to evaluate; name one or more")
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"no such folder: {include_path}")
    # lm-eval's own tasks take seconds to list, so they are listed only if they are needed.
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include_path)
    chosen = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches:
            for path in include_path.glob("**/*.yaml") if include_path else []:
                _check_task_file(path)  # lm-eval passes over files that it cannot read
            raise unknown("task", name, manager.all_tasks)
        chosen += matches
    return manager, [task for name in dict.fromkeys(chosen) for task in _load(manager, name, run_unsafe_code)]


def _check_task_file(path: Path) -> None:
    try:
        load_yaml(path, resolve_func=False)
    except Exception as error:
        raise UserError(f"{path} is not a task file: {_one_line(error)}") from error


def _load(manager: TaskManager, name: str, run_unsafe_code: bool) -> list[Task | Group]:
    """What a name stands for: a task, a group, or the tasks of a tag."""
    config = manager.task_index[name].cfg or {}
    _check_data(name, config)
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever a task file can do wrong
        source = config.get("dataset_path")
        raise UserError(
            f"the task {name!r} cannot be loaded{f', with its data from {source!r}' if source else ''}: "
            f"{_one_line(error)}; a task file of your own can take its data from a local file (--include-path)"
        ) from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) and not run_unsafe_code:
            raise UserError(
                f"the task {task.task_name!r} runs programs that the model writes, and lm-eval does so unguarded; "
                "if you want that, give --confirm-run-unsafe-code"
            )
    if name in loaded.get("groups", {}):
        return [loaded["groups"][name]]
    return list(loaded["tasks"].values())


def _check_data(name: str, config: dict[str, Any]) -> None:
    """Checks the local JSON Lines files of a task: lm-eval would show the model "None" for a missing field."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") != "json" or files is None or "data_dir" in config["dataset_kwargs"]:
        return
    templates = {key: config.get(key) for key in ("doc_to_text", "doc_to_choice", "doc_to_target")}
    choices = templates["doc_to_choice"]
    if isinstance(choices, list) and templates["doc_to_target"] in choices:
        del templates["doc_to_target"]  # a choice, not a field
    wanted = set() if config.get("process_docs") else {f for t in templates.values() for f in _fields(t)}
    for file in _flat(files):
        if "://" in file or any(mark in file for mark in "*?["):
            continue
        if not Path(file).is_file():
            raise UserError(f"no such file: {file}, from which the task {name!r} takes its data")
        if file.endswith((".jsonl", ".jsonl.gz")):
            for where, _, row in read_objects(Path(file)):
                for field in sorted(wanted):
                    if row.get(field) is None:
                        raise UserError(f"{where}: no field {field!r}, which the task {name!r} needs")


def _fields(template: Any) -> set[str]:
    """The fields that a template always shows: `question` and `a` in "{{question}} {{a}}{% if b %}{{c}}{% endif %}"."""
    if not isinstance(template, str):
        return set()
    if template.isidentifier():
        return {template}
    environment = Environment()
    try:
        tree = environment.parse(template)
    except TemplateSyntaxError:  # lm-eval will say so
        return set()
    pieces = [nodes.Output([part]) for node in tree.body if isinstance(node, nodes.Output) for part in node.nodes]
    names = {
        name.name
        for piece in pieces
        if not any(piece.find_all((nodes.CondExpr, nodes.Test, nodes.Or)))
        and not any(each.name in ("default", "d") for each in piece.find_all(nodes.Filter))
        for name in piece.find_all(nodes.Name)
    }
    return (names & meta.find_undeclared_variables(tree)) - set(environment.globals)


def check_examples(tasks: Iterable[Task], given: int | None) -> None:
    """Raises UserError for a task with too few documents to draw its few-shot examples from.

    Args:
        given: how many examples precede each question, unless the task says none; None for its own number.
    """
    for task in tasks:
        own = task.get_config("num_fewshot")
        wanted = own if given is None or own == 0 else given
        if not wanted:
            continue
        documents: Any = task.fewshot_docs()
        found = len(documents) if hasattr(documents, "__len__") else len(list(documents))
        split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
        if split is not None and split == task.get_config("test_split"):
            found -= 1  # the one that is asked is not its own example
        if found < wanted:
            raise UserError(
                f"the task {str(task.task_name)!r} has {found} documents to take examples from, not {wanted}: ask for "
                "fewer with num_fewshot"
            )


def _flat(files: Any) -> Iterator[str]:
    if isinstance(files, str | Path):
        yield str(files)
    else:
        for each in files.values() if isinstance(files, dict) else files:
            yield from _flat(each)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
