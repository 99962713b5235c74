"""The recipe of a Text-to-LoRA training: one YAML file in, a trained network or a folder of adapters out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import tyro

from dispatch.text_to_lora import network_path
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.outside.fields import added
from experts.shipped import shipped_library
from experts.text_to_lora.adapters import TaskAdapters, train_adapters
from experts.text_to_lora.encoder import BUILT_IN as BUILT_IN_ENCODER
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.reconstruction import Reconstruction, train_reconstruction
from experts.text_to_lora.supervised import Supervised, train_supervised
from experts.text_to_lora.tasks import TaskData
from experts.text_to_lora.writer import Base, Design, Sizes
from experts.training.run import Result, Run
from selfadapt.base_models import BUILT_IN, BaseOptions, load_base, load_config
from selfadapt.recipes.base import BaseBlock
from selfadapt.recipes.configuration import Choice, configs_folder, find_file, make, read_yaml, spell_out

OUTPUTS: dict[str, type] = {"lora": LoraOutput, "svf": SvfOutput}
TRAININGS: dict[str, type] = {"supervised": Supervised, "reconstruction": Reconstruction, "adapters": TaskAdapters}


@dataclass(frozen=True)
class TextToLoraRecipe:
    """What is written, how it is learned, and from which tasks.

    In the file, `output.kind` is lora or svf, and `training.kind` is supervised, reconstruction or adapters (the
    trained adapters that the other two are compared with, and that reconstruction needs).
    """

    output: Annotated[LoraOutput | SvfOutput, Choice("kind", OUTPUTS)]
    """For reconstruction, the library decides everything but the size."""
    training: Annotated[Supervised | Reconstruction | TaskAdapters, Choice("kind", TRAININGS), tyro.conf.arg(name="")]
    data: TaskData = field(default_factory=TaskData)
    model: str = "smollm2-135m"
    """A built-in name, a hub id, or a folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """The base's dtype; by default float32 on a CPU, and the checkpoint's own (auto) on an accelerator. What is
    trained is always float32."""
    encoder: str = BUILT_IN_ENCODER
    """A built-in name, a hub id or a folder; "base" is the base model's own last token."""
    trust_remote_code: bool = False
    """Let an encoder from the hub run the code that it brings; the paper's needs it."""
    network: Sizes = field(default_factory=Sizes)
    base: BaseBlock = added(default_factory=BaseBlock)

    def to_dict(self) -> dict[str, Any]:
        """What the YAML file would say, every default spelled out."""
        return spell_out(self)


def find_recipe(name: str) -> Path:
    """The path of a file, or of a shipped recipe such as `smollm2-135m/t2l/lora`.

    Raises:
        UserError: if there is neither, with the nearest names.
    """
    root = configs_folder()
    return find_file("recipe", name, root.glob("*/t2l/*.yaml"), root)


def read_recipe(path: Path) -> TextToLoraRecipe:
    """Reads and checks a recipe; raises UserError, one line that names the file, the field, and what it should be."""
    return make(TextToLoraRecipe, read_yaml(path), path)


def train(recipe: TextToLoraRecipe, output: Path, *, resume: bool = False) -> Result | list[Path]:
    """Trains what the recipe asks for.

    Returns:
        The result of a network's run, or the folders of trained adapters.

    Raises:
        UserError: for anything that the recipe, the data or the folders lack.
    """
    training = recipe.training
    if recipe.data.path is None and not isinstance(training, Reconstruction):
        raise UserError(
            "data.path is null, but this training needs instances of tasks; set it (only reconstruction needs none)"
        )
    options: BaseOptions = {"dtype": recipe.dtype, **recipe.base.options()}
    base, tasks = base_named(recipe.model, **options), recipe.data.load()
    if isinstance(training, TaskAdapters):
        return train_adapters(base, tasks, recipe.output, training, output)
    design = Design(recipe.output, recipe.encoder, recipe.trust_remote_code, recipe.network)
    run = Run(output, recipe.to_dict(), resume)
    if isinstance(training, Supervised):
        return train_supervised(design, base, tasks, training, run)
    return train_reconstruction(design, base, tasks, training, run)


def base_named(name: str | None, **options: Unpack[BaseOptions]) -> Base:
    """A base by its name, by default the built-in one, as Text-to-LoRA takes it: loaded when it is needed."""
    name = name or BUILT_IN
    how = {option: str(value) for option, value in options.items() if option not in ("device", "device_map")}
    return Base(name, lambda: load_config(name, **options), lambda: load_base(name, **options), how)


def find_network(model: str | None) -> Path:
    """The network that comes with a base; raises UserError if there is none."""
    name = model or BUILT_IN
    library = shipped_library(name)
    network = library and network_path(ExpertLibrary.open(library))
    if network is None or not network.is_dir():
        raise UserError(
            f"no network comes with the base {name!r}; train one with `selfadapt t2l train`, and name its folder with "
            "--network"
        )
    return network
