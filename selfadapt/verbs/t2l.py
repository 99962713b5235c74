"""`selfadapt t2l train|generate|import|evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from selfadapt.verbs import check_output, show
from selfadapt.verbs.evaluate import check_lm_eval, check_numbers, documents, task_names
from selfadapt.verbs.loading import FromOptions, Loading
from selfadapt.verbs.usage import parsed


@dataclass(frozen=True)
class T2LTrain:
    """Train the network, or the adapters, of a recipe. Its fields are options too: `t2l train RECIPE --help`."""

    recipe: Positional[str]
    """A YAML file, or a shipped recipe such as smollm2-135m/t2l/lora."""
    output: Path | None = None
    """The folder for the network, or for the adapters; by default runs/t2l- and the recipe's name."""
    resume: bool = False
    """Go on with a run that was interrupted; adapters that are there already are never trained again."""
    json: bool = False
    """Print the result as JSON."""


def t2l_train(args: list[str]) -> None:
    """`selfadapt t2l train`: our own options first, then those that the recipe's fields give."""
    help_flags = {"-h", "--help"}.intersection(args)
    if help_flags and len(args) == 1:
        tyro.cli(T2LTrain, args=args, prog="selfadapt t2l train")
    own = [a for a in args if a not in help_flags]
    options, fields = parsed(
        lambda: tyro.cli(T2LTrain, args=own, prog="selfadapt t2l train", return_unknown_args=True),
        "selfadapt t2l train",
    )
    fields += help_flags

    from experts.training.processes import processes
    from experts.training.run import Result
    from selfadapt.recipes import override
    from selfadapt.recipes.text_to_lora import find_recipe, read_recipe, train

    path = find_recipe(options.recipe)
    prog = f"selfadapt t2l train {options.recipe}"
    recipe = parsed(lambda: override(read_recipe(path), fields, prog=prog), prog)
    output = options.output or Path("runs") / f"t2l-{path.stem}"
    processes()  # each takes its own accelerator, before a base is loaded onto it
    result = train(recipe, output, resume=options.resume)
    if isinstance(result, Result):
        report: dict[str, Any] = {
            "network": str(result.folder),
            "parameters": result.parameters,
            "best_step": result.best_step,
            "validations": dict(result.validations),
            "train_seconds": result.train_seconds,
        }
    else:
        report = {"adapters": [str(adapter) for adapter in result]}
    if processes().is_main_process:
        show(report, options.json, str(output))


def t2l_generate(
    description: Positional[str],
    output: Path,
    network: Path | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Write an adapter from a description: a PEFT LoRA folder, or an expert's. Needs none of the base's weights.

    Args:
        description: what the task is, in a sentence.
        output: the adapter's folder, which must not exist.
        network: the folder that `selfadapt t2l train` wrote; by default the one that comes with the base.
        model: the base that the adapter is for, of which only the config is read; by default the network's, or the
            built-in one.
        trust_remote_code: let a text encoder from the hub run the code that it brings.
        json: print where the adapter is, and what it has, as JSON.
    """
    from dataclasses import asdict

    from experts.text_to_lora.writer import load_writer
    from selfadapt.recipes.text_to_lora import base_named, find_network

    check_output(output)
    folder = network or find_network(model)
    writer = load_writer(folder, base_named, model=model, trust_remote_code=trust_remote_code)
    (adapter,) = writer.generate([description])
    adapter.write(output)
    spec = writer.network.spec
    document = {
        "adapter": str(output),
        "kind": spec.output.kind,
        "base": spec.base,
        "matrices": len(spec.matrices),
        **asdict(spec.output),
    }
    show(document, json, str(output))


def t2l_import(folder: Positional[Path], output: Path, model: str | None = None, json: bool = False) -> None:
    """Convert a network of Text-to-LoRA's own code: args.yaml, adapter_config.json and hypermod.pt.

    Args:
        folder: the folder of these files; they are read without running any code that they may hold.
        output: the folder of the network, which must not exist.
        model: the base that it writes for, of which only the config is read; by default what args.yaml names.
        json: print what was written as JSON.
    """
    from dataclasses import replace

    from experts.outside.files import new_folder
    from experts.text_to_lora.original_import import import_network, read_original
    from experts.text_to_lora.shapes import read_matrices
    from experts.text_to_lora.writer import write_network
    from selfadapt.recipes.text_to_lora import base_named

    check_output(output)
    original = read_original(folder)
    if model is not None:
        original = replace(original, args={**original.args, "model_dir": model})
    matrices = read_matrices(base_named(original.base).config(), original.lora.target_modules)
    network = import_network(original, matrices)
    with new_folder(output) as temporary:
        write_network(network, temporary)
    document = {
        "network": str(output),
        "base": original.base,
        "encoder": original.encoder,
        "matrices": len(matrices),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    show(document, json, str(output))


@dataclass(frozen=True)
class OnTasks:
    """Judged by loss and ROUGE-L on test tasks, by default those of Natural Instructions."""

    tasks: str = "natural_instructions"
    """Where the tasks come from, as in a recipe's data.path."""
    with_definition: bool = False
    """Put the task's definition before every input."""
    split: Literal["train", "test"] = "test"
    """Which tasks: test, or train for those training tasks that have an adapter among --oracles."""
    instances: int = 20
    """Instances of each task."""
    max_new_tokens: int = 48
    """The most tokens in an answer."""


@dataclass(frozen=True)
class OnBenchmarks:
    """Judged by lm-eval-harness on benchmarks, as `selfadapt eval` judges."""

    benchmarks: str | None = None
    """Tasks of lm-eval, or patterns such as arc_*, separated by commas. They judge instead of --tasks."""
    include_path: Path | None = None
    """A folder with task files of your own."""
    limit: float | None = None
    """Only this many questions of each benchmark, the first ones, or this share of them if less than 1."""
    num_fewshot: int | None = None
    """How many examples precede each question; by default the task's own number."""
    apply_chat_template: bool = False
    """Make every question a chat."""
    batch_size: str = "1"
    """Requests at a time, or "auto"."""
    confirm_run_unsafe_code: bool = False
    """Let tasks run programs that the model writes, which lm-eval does unguarded."""


def t2l_evaluate(
    network: Positional[Path | None] = None,
    model: str = "smollm2-135m",
    base: FromOptions = Loading(),
    descriptions: str | None = None,
    adapters: Path | None = None,
    multi_task: Path | None = None,
    oracles: Path | None = None,
    methods: str | None = None,
    output: Path | None = None,
    resume: bool = False,
    on_tasks: Annotated[OnTasks, tyro.conf.OmitArgPrefixes] = OnTasks(),
    on_benchmarks: Annotated[OnBenchmarks, tyro.conf.OmitArgPrefixes] = OnBenchmarks(),
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Compare written adapters with baselines and controls on the official test tasks, or on benchmarks.

    Args:
        network: the folder that `selfadapt t2l train` wrote; without it only the baselines are compared.
        model: the base: a built-in name, a hub id or a folder.
        base: how the base is loaded.
        descriptions: a JSON Lines file of descriptions; by default tasks have their definitions, benchmarks ours.
        adapters: a folder of one LoRA for each training task, for their average and, on tasks, for Arrow routing.
        multi_task: the adapter that was trained on all training tasks.
        oracles: a folder of adapters that were trained on the evaluated tasks, or benchmarks, themselves.
        methods: rows of the table, by their names with commas between them; by default all whose folders are given.
        output: a JSON Lines file that gets the scores of each method and task, or benchmark, as they come.
        resume: go on with the scores in --output; also to add methods, or benchmarks, to them.
        on_tasks: when test tasks judge.
        on_benchmarks: when benchmarks judge.
        trust_remote_code: let a text encoder from the hub run the code that it brings.
        json: print estimates with their intervals, and the scores of all instances, as JSON.
    """
    import sys
    from dataclasses import asdict

    from experts.outside.errors import UserError, check_whole
    from experts.text_to_lora.baselines import NEEDS
    from experts.text_to_lora.chosen_methods import split_names
    from experts.text_to_lora.comparison import Comparison, compare_methods
    from experts.text_to_lora.tasks import TaskData
    from selfadapt.recipes.text_to_lora import base_named

    def say(name: str) -> None:
        print(name, file=sys.stderr)

    folders = {"adapters": adapters, "multi_task": multi_task, "oracles": oracles}
    compared_with: dict[str, Any] = {**folders, "output": output, "resume": resume}
    if on_benchmarks.benchmarks is not None:
        _refuse_given(on_tasks, "is for test tasks; leave out either it or --benchmarks")
        compared_with |= {"network": network, "descriptions": descriptions, "trust_remote_code": trust_remote_code}
        return _on_benchmarks(on_benchmarks, model, base, methods, compared_with, say, json)
    _refuse_given(on_benchmarks, "is for benchmarks: name them with --benchmarks")
    check_whole("--instances", on_tasks.instances)
    check_whole("--max-new-tokens", on_tasks.max_new_tokens)
    if on_tasks.split == "train" and oracles is None:
        raise UserError(
            "--split train needs adapters that were trained on those tasks: give their folder with --oracles"
        )
    how = asdict(on_tasks)
    data = TaskData(how.pop("tasks"), descriptions, validation_tasks=0)
    asked = () if methods is None else split_names(methods, NEEDS)
    comparison = Comparison(network, **compared_with, methods=asked, **how, trust_remote_code=trust_remote_code)
    compared = compare_methods(comparison, data, base_named(model, **base.options()), say)
    show(asdict(compared), json, compared.table())


def _on_benchmarks(
    given: OnBenchmarks,
    model: str,
    base: Loading,
    methods: str | None,
    compared_with: dict[str, Any],
    say: Callable[[str], None],
    json: bool,
) -> None:
    import contextlib
    import sys

    check_lm_eval()
    check_numbers(given.limit, given.num_fewshot)
    # lm-eval and what it loads print to stdout at will.
    with contextlib.redirect_stdout(sys.stderr):
        from experts.text_to_lora.chosen_methods import split_names
        from selfadapt.harness.benchmarks import NEEDS, compare_on_benchmarks
        from selfadapt.harness.model_options import check_batch_size

        check_batch_size("--batch-size", given.batch_size)
        compared = compare_on_benchmarks(
            task_names(given.benchmarks or ""),
            model,
            **compared_with,
            methods=() if methods is None else split_names(methods, NEEDS),
            include_path=given.include_path,
            model_args={"dtype": None, **base.options(), "batch_size": given.batch_size},
            say=say,
            limit=documents(given.limit),
            num_fewshot=given.num_fewshot,
            apply_chat_template=given.apply_chat_template,
            fewshot_as_multiturn=given.apply_chat_template,
            confirm_run_unsafe_code=given.confirm_run_unsafe_code,
        )
    show(compared.document(), json, compared.table())


def _refuse_given(options: OnTasks | OnBenchmarks, why: str) -> None:
    """Raises UserError for the first option that is not at its default."""
    from experts.outside.errors import UserError

    for field in fields(options):
        if getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} {why}")


def t2l() -> None:
    """Train networks that write adapters from descriptions, import the authors', write an adapter, and compare."""


T2L: dict[str, Callable[..., Any]] = {
    "train": T2LTrain,
    "generate": t2l_generate,
    "import": t2l_import,
    "evaluate": t2l_evaluate,
}
