"""Compares what a network writes with its baselines and controls on tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from experts.outside.errors import UserError, check_whole
from experts.text_to_lora.baselines import NEEDS, adapter_methods, check_oracles, prompt_methods, written_methods
from experts.text_to_lora.chosen_methods import choose, reference_among
from experts.text_to_lora.evaluation import Compared, Method, Score, evaluate, paired_estimates
from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.kept_scores import KeptScores, check_resumable, folder_hash, short_hash
from experts.text_to_lora.tasks import Task, TaskData
from experts.text_to_lora.writer import Base, TextToAdapter


@dataclass(frozen=True)
class Comparison:
    """Which methods are compared, on which tasks, and where their scores are kept.

    Raises:
        UserError: if there is no such method or folder, or a method needs a folder that is not given.
    """

    network: Path | None = None
    adapters: Path | None = None
    """One LoRA for each training task, for their average and for Arrow."""
    multi_task: Path | None = None
    """One adapter for all training tasks."""
    oracles: Path | None = None
    """Adapters trained on the evaluated tasks themselves."""
    methods: Sequence[str] = ()
    """Some of `NEEDS`; by default all whose folders are given."""
    split: str = "test"
    """The split whose tasks are used: test, or train for those training tasks that have an adapter among `oracles`."""
    with_definition: bool = False
    """Put the task's definition before every input."""
    instances: int = 20
    max_new_tokens: int = 48
    output: Path | None = None
    """A JSON Lines file that gets the scores as they come."""
    resume: bool = False
    """Go on with the scores that are in it."""
    trust_remote_code: bool = False
    """Let a text encoder from the hub run the code that it brings."""

    def __post_init__(self) -> None:
        for name in ("instances", "max_new_tokens"):
            check_whole(name, getattr(self, name))
        choose(NEEDS, self.folders, self.methods)
        check_resumable(self.output, self.resume)

    @property
    def folders(self) -> dict[str, Path | None]:
        """What methods may need."""
        return {need: getattr(self, need) for need in ("network", "adapters", "multi_task", "oracles")}

    @property
    def chosen(self) -> list[str]:
        """The methods that are compared, in the order of the table."""
        return choose(NEEDS, self.folders, self.methods)

    def needed(self, names: Sequence[str]) -> dict[str, Path]:
        """The folders that some methods need."""
        wanted = {NEEDS[name] for name in names}
        return {need: folder for need, folder in self.folders.items() if folder is not None and need in wanted}

    def tasks(self, data: TaskData) -> list[Task]:
        """The tasks that are evaluated; raises UserError if they are too few, or one has no adapter among oracles."""
        loaded, tasks = data.load(), []
        if self.split == "test":
            tasks = loaded.test
        elif self.oracles is None:
            raise UserError(
                "the train split is only for tasks that have an adapter of their own: name the folder of these "
                "adapters as oracles"
            )
        else:
            tasks = [task for task in loaded.train if (self.oracles / task.name).is_dir()]
        if len(tasks) < 2:
            where = f" with adapters in {self.oracles}" if self.split == "train" else ""
            count = f"one {self.split} task" if tasks else f"no {self.split} tasks"
            raise UserError(
                f"{data.path} has {count}{where}; a comparison needs two or more, since its intervals are over tasks"
            )
        if (oracles := self.needed(self.chosen).get("oracles")) is not None:
            check_oracles(oracles, tasks)
        return tasks

    def settings(self, base: Base, tasks: Sequence[Task]) -> dict[tuple[str, str], dict[str, Any]]:
        """(method, task) → everything that the scores depend on; a control depends on all tasks."""
        read = [replace(task, instances=task.instances[: self.instances]) for task in tasks]
        shared = {
            "model": base.name,
            **base.options,
            "tasks": short_hash(repr(read).encode()),
            "with_definition": self.with_definition,
            "instances": self.instances,
            "max_new_tokens": self.max_new_tokens,
        }
        folders = {need: folder_hash(folder) for need, folder in self.needed(self.chosen).items()}
        return {
            (name, task.name): shared | ({need: folders[need]} if (need := NEEDS[name]) else {})
            for name in self.chosen
            for task in tasks
        }


def compare_methods(
    comparison: Comparison, data: TaskData, base: Base, say: Callable[[str], None] = lambda name: None
) -> Compared:
    """Scores every chosen method, and compares it with what the network writes, or with the first method.

    Args:
        say: called with the name of each method before it is evaluated.

    Raises:
        UserError: if there are no tasks, a network or adapter is damaged or for another base, or as `KeptScores` does;
            after Ctrl-C, if scores are kept.
    """
    tasks, names = comparison.tasks(data), comparison.chosen
    settings = {} if comparison.output is None else comparison.settings(base, tasks)
    kept = KeptScores(list[Score], settings, comparison.output, resume=comparison.resume)

    def keep(method: str, scores: list[Score]) -> None:
        kept.add(method, scores[0].task, scores)

    missing = {name: [task for task in tasks if (name, task.name) not in kept.scores] for name in names}
    missing = {name: own for name, own in missing.items() if own}
    if missing:
        model, tokenizer = base.load()
        methods = _methods(comparison, [*missing], tasks, model, tokenizer)
        try:
            for method in methods:
                say(method.name)
                evaluate(
                    method,
                    tokenizer,
                    missing[method.name],
                    instances=comparison.instances,
                    max_new_tokens=comparison.max_new_tokens,
                    done=partial(keep, method.name),
                )
        except KeyboardInterrupt as error:
            if comparison.output is None:
                raise
            raise UserError(f"stopped; {comparison.output} has the scores so far: resume to continue") from error
    scores = {name: [score for task in tasks for score in kept.scores[name, task.name]] for name in names}
    reference = reference_among(names)
    return Compared(reference, paired_estimates(scores, reference), scores)


def _methods(
    comparison: Comparison, names: Sequence[str], tasks: Sequence[Task], base: Any, tokenizer: Any
) -> list[Method]:
    """The methods of these names; nothing is read that only others need."""
    style = PromptStyle(comparison.with_definition)
    methods, folders = prompt_methods(base, style), comparison.needed(names)
    if (network := folders.pop("network", None)) is not None:
        trust = comparison.trust_remote_code
        writer = TextToAdapter.for_base(network, base, tokenizer, trust_remote_code=trust)
        methods += written_methods(base, writer, tasks, style)
    methods += adapter_methods(base, style, **folders)
    return [method for method in methods if method.name in names]
