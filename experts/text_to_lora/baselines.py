"""What a written adapter is compared with: prompts, other adapters, and controls."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from experts.exchange.lora_folder import peft_type
from experts.expert import read_config
from experts.outside.chats import Chat
from experts.outside.errors import UserError
from experts.svf.fingerprint import read_sketch, refuse_other_base
from experts.text_to_lora.chosen_methods import Needs
from experts.text_to_lora.encoder import TaskEncoder, rescaled
from experts.text_to_lora.evaluation import Method
from experts.text_to_lora.examples import PromptStyle
from experts.text_to_lora.network import LoraOutput, Written
from experts.text_to_lora.rows import adapted_rows, base_factors
from experts.text_to_lora.tasks import Instance, Task
from experts.text_to_lora.writer import TextToAdapter

NEEDS: Needs = {
    "base": None,
    "description in the prompt": None,
    "3 examples in the prompt": None,
    "written": "network",
    "written, another task's description": "network",
    "written, a similar task's description": "network",
    "written, random description": "network",
    "written, random vector": "network",
    "average of LoRAs": "adapters",
    "Arrow routing of LoRAs": "adapters",
    "multi-task adapter": "multi_task",
    "adapter of the task itself": "oracles",
}
"""What a comparison on tasks may run."""


def prompt_methods(base: PreTrainedModel, style: PromptStyle, *, shots: int = 3) -> list[Method]:
    """The base itself, the base told the task in its prompt, and the base shown `shots` examples of it."""

    def described(task: Task, instance: Instance) -> Chat:
        return [{"role": "user", "content": f"{task.descriptions[0]}\n\n{instance.input}"}]

    def shown(task: Task, instance: Instance) -> Chat:
        turns: Chat = []
        for given, answer in task.examples[:shots]:
            turns += [
                *style.chat(task, Instance("", given, (answer,))),
                {"role": "assistant", "content": answer},
            ]
        return [*turns, *style.chat(task, instance)]

    return [
        Method("base", style.chat, lambda: nullcontext(base)),
        Method("description in the prompt", described, lambda: nullcontext(base)),
        Method(f"{shots} examples in the prompt", shown, lambda: nullcontext(base)),
    ]


def written_methods(
    base: PreTrainedModel, writer: TextToAdapter, tasks: Sequence[Task], style: PromptStyle, *, seed: int = 0
) -> list[Method]:
    """Adapters written from the task's description, from others' descriptions, a random text, and a random vector."""
    output = writer.network.spec.output
    scaling = output.scaling if isinstance(output, LoraOutput) else 1.0
    factors = None if isinstance(output, LoraOutput) else base_factors(base, writer.network)
    names = [task.name for task in tasks]
    others, similar = farthest(tasks, writer.encoder), nearest(tasks, writer.encoder)

    def method(name: str, write: Callable[[int], Written]) -> Method:
        def of_task(task: Task) -> AbstractContextManager[None]:
            return adapted_rows(base, write(names.index(task.name)), scaling=scaling, factors=factors)

        return Method(name, style.chat, lambda: nullcontext(base), of_task)

    def from_text(choose: Callable[[int], str]) -> Callable[[int], Written]:
        return lambda index: writer.write([choose(index)])

    def from_vector(index: int) -> Written:
        vector = torch.randn(1, writer.encoder.size, generator=torch.Generator().manual_seed(seed + index))
        return _write_from(writer, rescaled(vector))

    return [
        method("written", from_text(lambda index: tasks[index].descriptions[0])),
        method(
            "written, another task's description",
            from_text(lambda index: tasks[others[index]].descriptions[0]),
        ),
        method(
            "written, a similar task's description",
            from_text(lambda index: tasks[similar[index]].descriptions[0]),
        ),
        method("written, random description", from_text(lambda index: random_text(seed + index))),
        method("written, random vector", from_vector),
    ]


def farthest(tasks: Sequence[Task], encoder: TaskEncoder) -> list[int]:
    """For each task, the index of the one whose description is least like its own, of another category if possible.

    Embeddings alone would not do: they place some tasks of one kind farther apart than tasks of different kinds.
    """
    return _alike(tasks, encoder).fill_diagonal_(torch.inf).argmin(1).tolist()


def nearest(tasks: Sequence[Task], encoder: TaskEncoder) -> list[int]:
    """For each task, the index of the one whose description is most like its own, of its own category if possible."""
    return _alike(tasks, encoder).fill_diagonal_(-torch.inf).argmax(1).tolist()


def _alike(tasks: Sequence[Task], encoder: TaskEncoder) -> Tensor:
    """The cosines of first descriptions [N, N], and 2 more for tasks of one category: above those of all others."""
    vectors = rescaled(encoder([task.descriptions[0] for task in tasks]))
    kinds = [task.category for task in tasks]
    same = torch.tensor([[kind is not None and kind == other for other in kinds] for kind in kinds])
    return vectors @ vectors.T / vectors.shape[1] + 2 * same.to(vectors)


@torch.no_grad()
def _write_from(writer: TextToAdapter, vectors: Tensor) -> Written:
    network = writer.network.eval()
    return network.unpack(network(vectors.to(next(network.parameters()).device)))


def random_text(seed: int, words: int = 12) -> str:
    """Meaningless letters in the form of a sentence."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(words))


def adapter_methods(
    base: PreTrainedModel,
    style: PromptStyle,
    *,
    adapters: Path | None = None,
    multi_task: Path | None = None,
    oracles: Path | None = None,
) -> list[Method]:
    """The trained baselines whose folders are given, once it is known that the base can carry all of their adapters.

    Args:
        adapters: one LoRA for each training task: their average, and Arrow, which routes every token among them
            (arXiv 2405.11157).
        multi_task: one adapter for all training tasks.
        oracles: adapters trained on the evaluated tasks themselves, in folders named like the tasks.

    Raises:
        UserError: if an adapter is missing or damaged, of another kind than its method needs, or for another base.
    """
    methods = []
    if adapters is not None:
        paths = adapter_folders(adapters)
        if any(peft_type(path) != "LORA" for path in paths):
            raise UserError(f"{adapters} holds adapters other than LoRAs; the average and Arrow need LoRAs only")
        _fitting(base, paths)
        methods += [
            Method("average of LoRAs", style.chat, lambda: _averaged(base, paths)),
            Method("Arrow routing of LoRAs", style.chat, lambda: _arrow(base, paths)),
        ]
    if multi_task is not None:
        if peft_type(multi_task) is None:
            raise UserError(f"{multi_task} is not a PEFT adapter: it has no adapter_config.json that names its kind")
        one = _fitting(base, [multi_task])
        methods.append(Method("multi-task adapter", style.chat, lambda: _loaded(base, one)))
    if oracles is not None:
        methods.append(_oracle(base, style, oracles))
    return methods


def _oracle(base: PreTrainedModel, style: PromptStyle, folder: Path) -> Method:
    paths = _fitting(base, adapter_folders(folder))
    names = {path.name: _name(place) for place, path in enumerate(paths)}
    carried: list[PeftModel] = []

    @contextmanager
    def model() -> Iterator[PeftModel]:
        with _loaded(base, paths) as loaded:
            carried.append(loaded)
            yield loaded
            carried.clear()

    @contextmanager
    def of_task(task: Task) -> Iterator[None]:
        carried[0].set_adapter(names[task.name])
        yield

    return Method("adapter of the task itself", style.chat, model, of_task)


def adapter_folders(folder: Path) -> list[Path]:
    """The adapters in a folder, sorted by name; raises UserError if there are none."""
    paths = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if not paths:
        raise UserError(f"{folder} holds no adapters: no folder in it has an adapter_config.json")
    return paths


def check_oracles(folder: Path, tasks: Sequence[Task]) -> None:
    """Raises UserError for the first task that has no adapter in the folder."""
    for task in tasks:
        if not (folder / task.name / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds no adapter for {task.name}: there is no {task.name}/adapter_config.json")


def _fitting(base: PreTrainedModel, paths: list[Path]) -> list[Path]:
    """The same folders, after trying whether the base carries their adapters: before hours are spent on others."""
    with _loaded(base, paths):
        return paths


def _name(place: int) -> str:
    """What the base calls an adapter that it carries; PEFT does not take every name of a folder, such as "v1.0"."""
    return f"adapter{place}"


@contextmanager
def _loaded(base: PreTrainedModel, paths: Sequence[Path]) -> Iterator[PeftModel]:
    """Within the block, the base carries adapters, each as `_name(place)`, the first active; then it is as before."""
    model: PeftModel | None = None
    try:
        for place, path in enumerate(paths):
            name = _name(place)
            if peft_type(path) == "SVF" and (wanted := read_config(path).base_fingerprint) is not None:
                refuse_other_base(f"the expert in {path}", wanted, read_sketch(path), base)
            try:
                if model is None:
                    model = PeftModel.from_pretrained(base, str(path), adapter_name=name)
                else:
                    model.load_adapter(str(path), name)
            except (ValueError, RuntimeError, LookupError, OSError, SafetensorError) as error:
                said = " ".join(str(error).split())
                raise UserError(f"the adapter in {path} cannot be loaded onto this base: {said:.300}") from error
        assert model is not None
        yield model.eval()
    finally:
        if model is not None:
            model.unload()


@contextmanager
def _averaged(base: PreTrainedModel, paths: Sequence[Path]) -> Iterator[PeftModel]:
    """The exact mean of the LoRAs' differences: their factors side by side."""
    with _loaded(base, paths) as model:
        names = [_name(place) for place in range(len(paths))]
        tuner: Any = model.base_model
        tuner.add_weighted_adapter(names, [1 / len(names)] * len(names), "average", combination_type="cat")
        for layer in tuner.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling["average"] = 1.0  # the factors carry it; under rsLoRA PEFT would scale once more
        model.set_adapter("average")
        yield model


@contextmanager
def _arrow(base: PreTrainedModel, paths: Sequence[Path]) -> Iterator[PeftModel]:
    config = ArrowConfig(top_k=min(3, len(paths)))
    model = create_arrow_model(base, [str(path) for path in paths], config)
    try:
        yield model.eval()
    finally:
        model.unload()
