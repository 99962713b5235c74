"""Judges adapters that a network writes from descriptions of lm-eval's benchmarks, beside adapters that were trained.

A benchmark may have several descriptions, and so several written adapters: its score is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

from lm_eval import evaluator
from lm_eval.api.task import Task as Benchmark
from lm_eval.defaults import DEFAULT_OTHER_SEED
from transformers import set_seed

from dispatch import Fixed
from experts.attaching import check_fit, check_lora
from experts.engine import NativeEngine
from experts.exchange.lora import Lora
from experts.exchange.lora_folder import peft_type, read_lora
from experts.expert import Expert
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf.fingerprint import refuse_other_base
from experts.text_to_lora.baselines import adapter_folders, farthest, random_text
from experts.text_to_lora.chosen_methods import Needs, choose, reference_among
from experts.text_to_lora.kept_scores import KeptScores, folder_hash, short_hash
from experts.text_to_lora.tasks import Task, find_descriptions, read_descriptions
from experts.text_to_lora.writer import TextToAdapter
from experts.training.processes import processes
from experts.training.statistics import constant_answer
from selfadapt.harness.benchmark_table import Compared, Judged, compared
from selfadapt.harness.lm import SelfAdaptiveLM
from selfadapt.harness.tasks import check_examples, load_tasks
from selfadapt.two_pass import SelfAdaptiveModel

SHIPPED = "benchmarks.jsonl"
"""Our own descriptions of the benchmarks that Text-to-LoRA is judged by."""

Adapter = Expert | Lora


@dataclass(frozen=True)
class Method:
    """A way to answer benchmarks."""

    name: str
    adapters: Callable[[str], Sequence[Sequence[Adapter]]]
    """Benchmark → the adapters that answer it together, in equal weights; one such group per description."""


BASE = Method("base", lambda benchmark: [()])
NEEDS: Needs = {
    "base": None,
    "written": "network",
    "written, another benchmark's description": "network",
    "written, random description": "network",
    "average of adapters": "adapters",
    "multi-task adapter": "multi_task",
    "adapter of the benchmark itself": "oracles",
}
"""What a comparison on benchmarks may run."""


def compare_on_benchmarks(
    names: Sequence[str],
    model: str,
    *,
    network: Path | None = None,
    descriptions: str | None = None,
    adapters: Path | None = None,
    multi_task: Path | None = None,
    oracles: Path | None = None,
    methods: Sequence[str] = (),
    output: Path | None = None,
    resume: bool = False,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    trust_remote_code: bool = False,
    model_args: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> Compared:
    """Judges every chosen method, and compares it with what the network writes, or with the first method.

    Args:
        names: lm-eval's tasks, or patterns.
        network: the folder of a network; without it only the others are compared.
        descriptions: a JSON Lines file of descriptions for the benchmarks that it names; the others have ours.
        adapters: a folder of LoRAs and experts, for their mean.
        multi_task: one adapter that was trained on many tasks.
        oracles: adapters that were trained on the benchmarks themselves, in folders of the benchmarks' names.
        methods: some of `NEEDS`; by default all whose folders are given.
        output: a JSON Lines file that gets the scores of each method and benchmark as they come.
        resume: go on with the scores in it.
        include_path: a folder with task files of your own.
        num_fewshot: how many examples precede each question, unless the task says none; None for its own number.
        trust_remote_code: let a text encoder from the hub run the code that it brings.
        model_args: arguments of the lm-eval model (`SelfAdaptiveLM`).
        say: is called with the method and the benchmark before each evaluation.
        options: for `lm_eval.evaluate`, such as `limit` and `apply_chat_template`.

    Raises:
        UserError: as `choose`, `load_tasks` and `check_examples` do; if a benchmark has no description, or is not
            scored by right and wrong; if a network or adapter is damaged, or for another base; if there are several
            processes; as `KeptScores` does; after Ctrl-C, if scores are kept.
    """
    if processes().num_processes > 1:
        raise UserError("benchmarks run in one process: start the command without torchrun or accelerate launch")
    given = {"network": network, "adapters": adapters, "multi_task": multi_task, "oracles": oracles}
    chosen = choose(NEEDS, given, methods)
    needed = {NEEDS[name] for name in chosen}
    network, adapters, multi_task, oracles = (folder if need in needed else None for need, folder in given.items())
    _, loaded = load_tasks(names, include_path, options.get("confirm_run_unsafe_code", False))
    benchmarks = _named(loaded)
    check_examples(benchmarks.values(), num_fewshot)
    described = _described(benchmarks, descriptions) if network is not None else []
    own_folders = {} if oracles is None else {name: oracles / name for name in benchmarks}
    for name, folder in own_folders.items():
        if not (folder / "adapter_config.json").is_file():
            raise UserError(f"{oracles} holds no adapter for {name}: there is no {name}/adapter_config.json")

    for benchmark in benchmarks.values():
        _set_fewshot(benchmark, num_fewshot)
    model_args = dict(model_args or {})
    kept = KeptScores(
        Judged,
        {} if output is None else _settings(chosen, benchmarks, model, model_args, given, described, options),
        output,
        resume=resume,
    )
    missing = [(name, benchmark) for name in chosen for benchmark in benchmarks if (name, benchmark) not in kept.scores]
    if missing:
        lm = SelfAdaptiveLM(model, dispatch="none", **model_args)
        engine = cast(NativeEngine, lm.two_pass.engine)
        possible = [BASE, *_trained(engine, adapters, multi_task, own_folders)]
        if network is not None:
            possible += _written(network, described, engine, trust_remote_code)
        by_name = {method.name: method for method in possible}
        judge = _Judge(engine, model_args.get("batch_size", 1), options)
        try:
            for method, benchmark in missing:
                say(f"{method}: {benchmark}")
                kept.add(method, benchmark, judge(by_name[method], benchmarks[benchmark], benchmark))
        except KeyboardInterrupt as error:
            if output is None:
                raise
            raise UserError(f"stopped; {output} has the scores so far: resume to continue") from error
    results = [kept.scores[name, benchmark] for name in chosen for benchmark in benchmarks]
    return compared(results, reference_among(chosen))


@dataclass(frozen=True)
class _Judge:
    """lm-eval, which puts the same questions to every method in the same way."""

    engine: NativeEngine
    batch_size: int | str
    options: Mapping[str, Any]

    def __call__(self, method: Method, benchmark: Benchmark, name: str) -> Judged:
        """The scores of a method on a benchmark."""
        samples = [self._samples(together, benchmark, name) for together in method.adapters(name)]
        metric, filter_name = samples[0][0]["metrics"][0], samples[0][0]["filter"]
        scores = []
        for of_one in samples:
            own = {sample["doc_id"]: sample[metric] for sample in of_one if sample["filter"] == filter_name}
            if any(score not in (0, 1) for score in own.values()):
                raise UserError(
                    f"{name} is scored by {metric}, which does not call an answer right or wrong; use a task file of "
                    "your own (--include-path) whose first metric is acc, acc_norm or exact_match"
                )
            scores.append([int(own[document]) for document in sorted(own)])
        constant = None
        if benchmark.OUTPUT_TYPE == "multiple_choice":
            # Where the questions differ and not the answers, as in Winogrande, the right one stands for the text.
            right = benchmark.doc_to_text if benchmark.multiple_input else benchmark.doc_to_target
            constant = constant_answer([right(sample["doc"]) for sample in samples[0]]).value
        label = metric if filter_name == "none" else f"{metric}, {filter_name}"
        return Judged(method.name, name, label, scores, constant)

    def _samples(self, together: Sequence[Adapter], benchmark: Benchmark, name: str) -> list[dict[str, Any]]:
        """lm-eval's log of a benchmark, answered under adapters in equal weights."""
        carried = [f"judged-{number}" for number in range(len(together))]
        for own, adapter in zip(carried, together, strict=True):
            self.engine.carry(own, adapter)
        try:
            everywhere = Fixed(Mixture.of({own: 1 / len(carried) for own in carried}))
            lm = SelfAdaptiveLM(SelfAdaptiveModel(self.engine, everywhere), batch_size=self.batch_size)
            # `simple_evaluate` would list all installed packages each time, which takes seconds.
            set_seed(DEFAULT_OTHER_SEED)
            benchmark.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            asked = {"tasks": {name: benchmark}}
            results = evaluator.evaluate(lm=lm, task_dict=asked, bootstrap_iters=0, **self.options)
        finally:
            for own in carried:
                self.engine.drop(own)
        assert results is not None  # one process
        return results["samples"][name]


def _named(loaded: Sequence[Any]) -> dict[str, Benchmark]:
    for each in loaded:
        if not isinstance(each, Benchmark):
            raise UserError(f"{each.name!r} is a group of tasks; name the tasks in it instead")
        if each.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UserError(f"{each.task_name!r} scores whole texts, which are not right or wrong; leave it out")
    return {str(each.task_name): each for each in loaded}


def _set_fewshot(benchmark: Benchmark, given: int | None) -> None:
    """Sets the number of examples as `lm_eval.simple_evaluate` does, which leaves a task's own 0 alone."""
    own = benchmark.get_config("num_fewshot")
    if own is None or (given is not None and own != 0):
        benchmark.set_config(key="num_fewshot", value=given or 0)


def _described(names: Iterable[str], file: str | None) -> list[Task]:
    """All benchmarks that have descriptions; raises UserError if one of these names has none."""
    texts = read_descriptions(find_descriptions(SHIPPED))
    if file is not None:
        texts |= read_descriptions(find_descriptions(file))
    for name in names:
        if name not in texts:
            raise UserError(f"the benchmark {name!r} has no description: give --descriptions a file with a line for it")
    return [Task(name, "test", own[0], descriptions=own) for name, own in texts.items()]


def _settings(
    chosen: Sequence[str],
    benchmarks: Mapping[str, Benchmark],
    model: str,
    model_args: Mapping[str, Any],
    folders: Mapping[str, Path | None],
    described: Sequence[Task],
    options: Mapping[str, Any],
) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, benchmark) → everything that the scores depend on, as JSON has it."""
    unimportant = ("device", "batch_size", "confirm_run_unsafe_code")
    shared = {
        "model": model,
        **{name: str(value) for name, value in {**model_args, **options}.items() if name not in unimportant},
    }
    needed = {NEEDS[name] for name in chosen}
    hashes = {need: folder_hash(folder) for need, folder in folders.items() if folder is not None and need in needed}
    if described:
        hashes["network"] += short_hash(repr(described).encode())
    asked = {
        name: short_hash(repr([benchmark.dump_config(), [*benchmark.eval_docs]]).encode())
        for name, benchmark in benchmarks.items()
    }
    return {
        (method, benchmark): {
            **shared,
            "benchmark": asked[benchmark],
            **({need: hashes[need]} if (need := NEEDS[method]) else {}),
        }
        for method in chosen
        for benchmark in benchmarks
    }


def _trained(
    engine: NativeEngine, adapters: Path | None, multi_task: Path | None, own_folders: Mapping[str, Path]
) -> list[Method]:
    """Adapters from folders: the mean of many, one for all benchmarks, and each benchmark's own."""
    possible = []
    if adapters is not None:
        together = [_read(folder, engine) for folder in adapter_folders(adapters)]
        possible.append(Method("average of adapters", lambda benchmark: [together]))
    if multi_task is not None:
        for_all = _read(multi_task, engine)
        possible.append(Method("multi-task adapter", lambda benchmark: [[for_all]]))
    if own_folders:
        own = {name: _read(folder, engine) for name, folder in own_folders.items()}
        possible.append(Method("adapter of the benchmark itself", lambda benchmark: [[own[benchmark]]]))
    return possible


def _written(network: Path, described: Sequence[Task], engine: NativeEngine, trust_remote_code: bool) -> list[Method]:
    """Adapters written from a benchmark's descriptions; and the controls, from as many of another's, or random texts.

    Args:
        described: everything that has descriptions; the one least like a benchmark is looked for among all of them.
    """
    own_base: Any = engine.model, engine.tokenizer
    writer = TextToAdapter.for_base(network, *own_base, trust_remote_code=trust_remote_code)
    own = {task.name: task.descriptions for task in described}
    least_alike = dict(zip(own, farthest(described, writer.encoder), strict=True))
    numbers = count()
    random = {name: [random_text(next(numbers)) for _ in texts] for name, texts in own.items()}

    def method(name: str, texts: Callable[[str], Sequence[str]]) -> Method:
        return Method(name, lambda benchmark: [[adapter] for adapter in writer.generate(texts(benchmark))])

    return [
        method("written", lambda benchmark: own[benchmark]),
        method(
            "written, another benchmark's description",
            lambda benchmark: described[least_alike[benchmark]].descriptions[: len(own[benchmark])],
        ),
        method("written, random description", lambda benchmark: random[benchmark]),
    ]


def _read(folder: Path, engine: NativeEngine) -> Adapter:
    """An expert or a LoRA that fits the base."""
    if peft_type(folder) != "SVF":
        lora = read_lora(folder)
        check_lora(f"the LoRA in {folder}", lora, engine.model)
        return lora
    expert = Expert.read(folder)
    if expert.fingerprint is not None:
        refuse_other_base(f"the expert in {folder}", expert.fingerprint, expert.sketch, engine.model)
    check_fit(folder, engine.model)
    return expert
