"""Text-to-LoRA from files: a recipe in, a trained network or a folder of adapters out; a comparison of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.outside.chats import check_template
from experts.outside.errors import UserError, check_numbers
from experts.svf.fingerprint import fingerprint, refuse_other_base
from experts.text_to_lora.adapters import TaskAdapters, check_adapters, train_adapters
from experts.text_to_lora.baselines import adapter_methods, prompt_methods, written_methods
from experts.text_to_lora.encoder import BASE, LastTokenEncoder, SentenceEncoder, TaskEncoder
from experts.text_to_lora.encoder import BUILT_IN as BUILT_IN_ENCODER
from experts.text_to_lora.evaluation import Score, evaluate
from experts.text_to_lora.examples import PromptStyle, check_examples
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.reconstruction import (
    Library,
    Reconstruction,
    ReconstructionLoss,
    collate,
    embedded_descriptions,
    read_targets,
)
from experts.text_to_lora.run import Learning, check_network_run, train_network
from experts.text_to_lora.shapes import check_same_matrices, read_matrices
from experts.text_to_lora.supervised import (
    AnswerLoss,
    Collator,
    Supervised,
    base_factors,
    training_items,
    validation_items,
)
from experts.text_to_lora.tasks import TaskData
from experts.text_to_lora.writer import TextToAdapter, read_network, shipped_network
from experts.training.objective import check_tokenizer
from experts.training.run import Result, Run
from selfadapt.base_models import BUILT_IN, load_base, load_config
from selfadapt.recipes.configuration import Choice, configs_folder, find_file, make, read_yaml, spell_out

OUTPUTS: dict[str, type] = {"lora": LoraOutput, "svf": SvfOutput}
TRAININGS: dict[str, type] = {"supervised": Supervised, "reconstruction": Reconstruction, "adapters": TaskAdapters}


@dataclass(frozen=True)
class Sizes:
    """Of the network, where they are not the paper's."""

    latent_size: int = 128
    head_size: int = 512
    dropout: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(self, least=[("latent_size", 1), ("head_size", 1), ("dropout", 0)])
        if self.dropout >= 1:
            raise UserError(f"dropout must be below 1, not {self.dropout}")


@dataclass(frozen=True)
class Recipe:
    """What is written, how it is learned, and from which tasks.

    In the file, `output.kind` is lora or svf, and `training.kind` is supervised, reconstruction or adapters (the
    trained adapters that the other two are compared with, and that reconstruction needs).
    """

    output: Annotated[LoraOutput | SvfOutput, Choice("kind", OUTPUTS)]
    """For reconstruction the library decides about everything but the size."""
    training: Annotated[Supervised | Reconstruction | TaskAdapters, Choice("kind", TRAININGS), tyro.conf.arg(name="")]
    data: TaskData = field(default_factory=TaskData)
    model: str = "smollm2-135m"
    """A built-in name, a hub id, or a folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Of the base; by default float32 on a CPU, and the checkpoint's own (auto) on an accelerator. What is trained
    is float32 all the same."""
    encoder: str = BUILT_IN_ENCODER
    """A built-in name, a hub id or a folder; "base" is the base model's own last token."""
    trust_remote_code: bool = False
    """Let an encoder of the hub run the code that it brings; the paper's needs it."""
    network: Sizes = field(default_factory=Sizes)

    def to_dict(self) -> dict[str, Any]:
        """What the YAML file would say, every default spelled out."""
        return spell_out(self)


def find_recipe(name: str) -> Path:
    """A file, or a shipped recipe such as `smollm2-135m/t2l/lora`.

    Raises:
        UserError: if there is neither, with the nearest names.
    """
    root = configs_folder()
    return find_file("recipe", name, root.glob("*/t2l/*.yaml"), root)


def read_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe; raises UserError, one line that names the file, the field, and what it should be."""
    return make(Recipe, read_yaml(path), path)


def train(recipe: Recipe, output: Path, *, resume: bool = False) -> Result | list[Path]:
    """Trains what the recipe asks for.

    Returns:
        The result of a network's run, or the folders of trained adapters.

    Raises:
        UserError: for anything that the recipe, the data or the folders lack.
    """
    training = recipe.training
    run = Run(output, recipe.to_dict(), resume)
    if not isinstance(training, TaskAdapters):
        check_network_run(run, training)
    if isinstance(training, Supervised):
        return _train_supervised(recipe, training, run)
    if isinstance(training, Reconstruction):
        return _train_reconstruction(recipe, training, run)
    tasks = recipe.data.load()
    check_adapters(tasks, training, output)
    base, tokenizer = load_base(recipe.model, dtype=recipe.dtype)
    check_template(tokenizer)
    return train_adapters(base, tokenizer, tasks, recipe.output, training, output, base_name=recipe.model)


def _train_supervised(recipe: Recipe, training: Supervised, run: Run) -> Result:
    tasks = recipe.data.load()
    if not tasks.train or not tasks.validation:
        raise UserError(f"{recipe.data.path} has no training tasks, or data.validation_tasks holds none of them out")
    base, tokenizer = load_base(recipe.model, dtype=recipe.dtype)
    check_tokenizer(tokenizer)
    check_template(tokenizer)
    check_examples(base.config, tokenizer, training.prompt, [*tasks.train, *tasks.validation])
    encoder = _encoder(recipe.encoder, recipe.trust_remote_code, lambda: (base, tokenizer))
    torch.manual_seed(training.seed)
    writer = TextToAdapter.untrained(
        recipe.output,
        read_matrices(base, recipe.output.target_modules),
        encoder,
        base=recipe.model,
        fingerprint=fingerprint(base),
        **asdict(recipe.network),
    )
    writer.network.to(base.device)
    assert isinstance(tokenizer.pad_token_id, int)
    return train_network(
        writer,
        Learning(
            AnswerLoss(base, writer.network, training),
            training_items(tasks.train, tokenizer, encoder, training),
            validation_items(tasks.validation, tokenizer, encoder, training),
            Collator(tokenizer.pad_token_id),
        ),
        training,
        run,
    )


def _train_reconstruction(recipe: Recipe, training: Reconstruction, run: Run) -> Result:
    targets = read_targets(Path(training.adapters))
    if type(targets.output) is not type(recipe.output):
        raise UserError(
            f"{training.adapters} holds adapters of the kind {targets.output.kind}: set output.kind to that"
        )
    written = targets.output
    if isinstance(written, LoraOutput) and isinstance(recipe.output, LoraOutput):
        written = replace(written, size=recipe.output.size)
    encoder = _encoder(recipe.encoder, recipe.trust_remote_code, lambda: load_base(recipe.model, dtype=recipe.dtype))
    torch.manual_seed(training.seed)
    writer = TextToAdapter.untrained(
        written,
        read_matrices(load_config(recipe.model), written.target_modules),
        encoder,
        base=recipe.model,
        fingerprint=targets.fingerprint,
        normalised=training.loss == "normalised",
        **asdict(recipe.network),
    )
    factors = None
    if isinstance(written, SvfOutput) and training.loss == "difference":
        factors = base_factors(load_base(recipe.model, dtype=recipe.dtype)[0], writer.network)
    tasks = recipe.data.load()
    described = {task.name: task.descriptions for task in (*tasks.train, *tasks.validation, *tasks.test)}
    library = Library(targets, writer.network, embedded_descriptions(targets, described, encoder))
    rows = list(range(len(targets.names)))
    held_out, learned = rows[: training.validation_adapters], rows[training.validation_adapters :]
    if not learned:
        raise UserError(f"{training.adapters} has {len(rows)} adapters: none is left beside {len(held_out)} held out")
    if training.loss == "normalised":
        library.normalise(writer.network, learned)
    return train_network(
        writer,
        Learning(
            ReconstructionLoss(writer.network, training.loss, factors),
            library.items(training, learned),
            [library.item(row) for row in held_out or learned],
            collate,
        ),
        training,
        run,
    )


def _encoder(
    name: str, trust_remote_code: bool, base: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
) -> TaskEncoder:
    if name == BASE:
        return LastTokenEncoder(*base())
    return SentenceEncoder(name, trust_remote_code=trust_remote_code)


def find_network(model: str | None) -> Path:
    """The network that comes with a base; raises UserError if there is none."""
    network = shipped_network(model or BUILT_IN)
    if network is None:
        raise UserError(f"no network comes with the base {model or BUILT_IN!r}; train one, and name it with --network")
    return network


def load_writer(network: Path, *, model: str | None = None, trust_remote_code: bool = False) -> TextToAdapter:
    """A trained network with its encoder.

    Args:
        model: the base that the adapters are for, whose matrices are then compared with the network's; its config is
            enough.

    Raises:
        UserError: if the folder holds no network, or one for another base.
    """
    read = read_network(network)
    spec = read.spec
    if model is not None:
        check_same_matrices(spec.matrices, read_matrices(load_config(model), spec.output.target_modules))
    encoder = _encoder(spec.encoder, trust_remote_code, lambda: load_base(model or spec.base or BUILT_IN))
    return TextToAdapter(read, encoder)


def compare_methods(
    network: Path | None,
    data: TaskData,
    *,
    model: str,
    dtype: str | None = None,
    with_definition: bool,
    adapters: Path | None,
    multi_task: Path | None,
    oracles: Path | None,
    split: str,
    instances: int,
    max_new_tokens: int,
    say: Callable[[str], None],
    trust_remote_code: bool = False,
) -> dict[str, list[Score]]:
    """The scores of every method that there is something for, on the test tasks.

    On the training tasks instead, if `split` says so: on those that have an adapter of their own among `oracles`.
    """
    loaded = data.load()
    tasks = loaded.test
    if split == "train":
        if oracles is None:
            raise UserError("training tasks are for what learned their adapters: say with --oracles where these are")
        tasks = [task for task in loaded.train if (oracles / task.name).is_dir()]
    if not tasks:
        raise UserError(f"{data.path} has no {split} tasks" + (f" with adapters in {oracles}" if oracles else ""))
    style = PromptStyle(with_definition)
    base, tokenizer = load_base(model, dtype=dtype)
    methods = prompt_methods(base, style)
    if network is not None:
        writer = load_writer(network, trust_remote_code=trust_remote_code)
        wanted = writer.network.spec.fingerprint
        if wanted is not None:
            refuse_other_base(f"the network in {network}", wanted, None, base)
        writer.network.to(base.device)
        methods += written_methods(base, writer, tasks, style)
    methods += adapter_methods(base, style, adapters=adapters, multi_task=multi_task, oracles=oracles)
    scores = {}
    for method in methods:
        say(method.name)
        scores[method.name] = evaluate(method, tokenizer, tasks, instances=instances, max_new_tokens=max_new_tokens)
    return scores
