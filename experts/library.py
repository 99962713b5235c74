"""Experts on disk: one is a PEFT adapter folder, a library is a folder of named experts for one base."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.exchange.hub import LibraryOnTheHub
from experts.exchange.repository import refuse_snapshot
from experts.expert import SUFFIX, Expert, read_config, read_z
from experts.mixture import Mixture
from experts.outside.adapters import PREFIX
from experts.outside.base_names import public_name
from experts.outside.errors import UserError, unknown
from experts.outside.files import atomic_folder, write_json
from experts.outside.reading import read_json, read_text
from experts.svf import SVFConfig
from experts.svf.fingerprint import (
    Sketch,
    fingerprint,
    is_other_base,
    read_sketch,
    refuse_other_base,
    sketch,
    write_sketch,
)
from experts.svf.layer import SVFLinear
from experts.svf.names import fault_in_adapter_name, plain_modules

CLASSIFIER = "classifier"  # the folder of the expert that names domains, beside those that answer
# Who chooses among experts by their names reads some names otherwise, and says itself which: `RESERVED_NAMES`, name →
# why no expert can have it. It stands above this package, and need not have been imported when an expert is added.
CHOOSER = "dispatch"

# An expert's name is an adapter's in PEFT, a folder's on any file system, and a word of the command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
WINDOWS_DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9]", re.IGNORECASE)


class UnknownBase(UserError):
    """An expert's folder does not say which base it was trained on, and nobody else has said it."""

    def __init__(self, expert: str) -> None:
        super().__init__(f"{expert} does not say which base it was trained on; name that base")


def check_name(name: str) -> None:
    """Raises UserError, with the reason, if no expert of a library can have this name."""
    fault = fault_in_adapter_name(name)
    if fault is None:
        fault = import_module(CHOOSER).RESERVED_NAMES.get(name.casefold())
    if fault is None and WINDOWS_DEVICES.fullmatch(name):
        fault = "Windows keeps it for a device"
    if fault is None and not NAME.fullmatch(name):
        fault = "it must have at most 100 letters from A to Z, digits, '-' and '_', a letter or digit first"
    if fault is not None:
        raise UserError(f"{name!r} cannot name an expert: {fault}; choose another name")


def load_expert(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the expert of `folder` active and frozen.

    Raises:
        UserError: if the expert is damaged or was trained on another base.
    """
    wanted = read_config(folder).base_fingerprint
    if wanted is not None:
        refuse_other_base(f"the expert in {folder}", wanted, read_sketch(folder), base)
    return _attach(base, folder, "default")


def _attach(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Adds an expert to a model, after a look at every vector that PEFT would stumble over."""
    config, vectors = _check_fit(folder, model)
    if not isinstance(model, PeftModel):
        _refuse_another(folder, vectors, model, name)
    config.inference_mode = True
    config.base_model_name_or_path = None  # PEFT puts the base's own name there, with a warning if it differs
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = cast(PeftModel, get_peft_model(model, config, name))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the expert in {folder} does not load: {' '.join(str(error).split())}") from error
    modules = plain_modules(model.get_base_model())
    adapted = {key for key, module in modules.items() if isinstance(module, SVFLinear) and name in module.svf_z}
    if odd := sorted(adapted ^ set(vectors)):
        where = "adapter_config.json" if odd[0] in adapted else "adapter_model.safetensors"
        raise UserError(f"the expert in {folder} is damaged: only {where} speaks of {odd[0]}")
    # Not by PEFT's own reader, which would load embeddings that the file may hold into the base.
    set_peft_model_state_dict(model, {f"{PREFIX}{matrix}{SUFFIX}": z for matrix, z in vectors.items()}, name)
    return model.eval()


def _refuse_another(folder: Path, vectors: dict[str, Tensor], base: PreTrainedModel, name: str) -> None:
    """Raises UserError if a base, which another PEFT model wraps already, carries another expert of this name.

    PEFT would put the new one in its place, for that model, too.
    """
    for matrix, layer in plain_modules(base).items():
        if isinstance(layer, SVFLinear) and name in layer.svf_z:
            carried, wanted = layer.svf_z[name].detach(), vectors.get(matrix)
            if wanted is None or not torch.equal(carried, wanted.to(carried)):
                raise UserError(
                    f"the base carries another expert {name!r} than that in {folder}; load a base of its own, or "
                    "unload() the model that carries it"
                )


def _check_fit(folder: Path, model: PreTrainedModel | PeftModel) -> tuple[SVFConfig, dict[str, Tensor]]:
    """The configuration and z of an expert whose matrices a base has, with so many singular values.

    Raises:
        UserError: if it does not.
    """
    config, vectors = read_config(folder), read_z(folder)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = plain_modules(plain)
    for matrix, z in vectors.items():
        module = modules.get(matrix)
        if module is None:
            raise UserError(f"the expert in {folder} adapts {matrix}, which the base does not have")
        if not isinstance(module, nn.Linear | Conv1D | SVFLinear):
            raise UserError(f"the expert in {folder} adapts {matrix}, which is no linear layer of the base")
        rank = min(*module.weight.shape, config.rank_of(matrix) or len(z))
        if len(z) != rank:
            raise UserError(f"the expert in {folder} has {len(z)} values for {matrix}, which needs {rank}")
    return config, vectors


@dataclass(frozen=True)
class MatrixFigures:
    """z of one matrix: how many values it has, the smallest and the largest."""

    r: int
    min: float
    max: float


@dataclass(frozen=True)
class ExpertFigures:
    """What an expert is for, and its z in figures."""

    name: str
    domain: str | None
    description: str | None
    rank: int | None
    parameters: int
    matrices: dict[str, MatrixFigures]


@dataclass
class ExpertLibrary(LibraryOnTheHub):
    """Named experts for one base: a folder with `library.json` and one adapter folder an expert.

    An empty library is the base.
    """

    folder: Path
    base: str
    fingerprint: str
    names: list[str]

    @classmethod
    def create(
        cls, folder: str | Path, base: str, base_fingerprint: str, base_sketch: Sketch | None = None
    ) -> ExpertLibrary:
        """An empty library in a new or empty folder.

        Args:
            base_sketch: from `experts.svf.fingerprint.sketch`; by it a rounding of the base is known.

        Raises:
            UserError: if the folder holds something already.
        """
        folder = Path(folder)
        library = cls(folder, base, base_fingerprint, [])
        folder.mkdir(parents=True, exist_ok=True)
        with library._lock():
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} is not empty; a new library needs a folder of its own")
            if base_sketch is not None:
                write_sketch(folder, base_sketch)
            library._write()
        return library

    @classmethod
    def open(cls, folder: str | Path) -> ExpertLibrary:
        """Reads `library.json`; the experts themselves are read when they are asked for.

        Raises:
            UserError: if there is no library, it is damaged, a listed expert is missing, or one cannot have its name.
        """
        folder = Path(folder)
        path = folder / "library.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a library: it has no library.json")
        document = read_json(path)
        names = document.get("experts") if isinstance(document, dict) else None
        if not isinstance(names, list) or not all(isinstance(document.get(k), str) for k in ("base", "fingerprint")):
            raise UserError(f"{path} is damaged: it must hold base, fingerprint and a list of experts")
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"{path} is damaged: {name!r:.60} cannot name an expert")
            try:
                check_name(name)
            except UserError as error:
                raise UserError(f"{path}: {error}, there and for its folder") from error
            if names.count(name) > 1:
                raise UserError(f"{path} names the expert {name!r} twice; remove one of the two there")
            if not (folder / name / "adapter_config.json").is_file():
                raise UserError(f"{path} names the expert {name!r}, but {folder / name} holds none; remove it there")
        return cls(folder, document["base"], document["fingerprint"], names)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """The folder of an expert.

        Raises:
            UserError: with the nearest names, if there is none of that name.
        """
        if name not in self.names:
            raise unknown("expert", name, self.names)
        return self.folder / name

    def config(self, name: str) -> SVFConfig:
        return read_config(self.path(name))

    def descriptions(self) -> dict[str, str]:
        """Expert's name → its domain in one sentence; the name itself where there is none."""
        return {name: self.config(name).description or name for name in self.names}

    @property
    def classifier(self) -> Path | None:
        """The folder of the classification expert, if the library has one."""
        folder = self.folder / CLASSIFIER
        return folder if folder.is_dir() else None

    @property
    def sketch(self) -> Sketch | None:
        """Of the base, from `experts.svf.fingerprint.sketch`; None where none is kept."""
        return read_sketch(self.folder)

    def z(self, name: str) -> dict[str, Tensor]:
        """Matrix name → z [r] of an expert, float32."""
        return read_z(self.path(name))

    def figures(self, name: str) -> ExpertFigures:
        """What its configuration says of an expert, and its z in figures."""
        config, vectors = self.config(name), self.z(name)
        matrices = {
            matrix: MatrixFigures(len(vector), vector.min().item(), vector.max().item())
            for matrix, vector in vectors.items()
        }
        parameters = sum(matrix.r for matrix in matrices.values())
        return ExpertFigures(name, config.domain, config.description, config.rank, parameters, matrices)

    def card(self, name: str) -> str:
        """An expert's model card, Markdown."""
        return read_text(self.path(name) / "README.md")

    def expert(self, name: str) -> Expert:
        """An expert to calculate with: `(0.5 * library.expert("a") + library.expert("b")).write(folder)`."""
        expert = Expert.read(self.path(name))
        ours = expert.sketch is None and expert.fingerprint == self.fingerprint
        return replace(expert, sketch=self.sketch) if ours else expert

    def mixed(self, mixture: Mixture) -> Expert:
        """The expert that a mixture for one prompt amounts to: z = 1 + Σ_k α_k (z_k − 1).

        Raises:
            UserError: if the mixture names an expert that the library does not have.
        """
        description = f"The mixture {mixture}."
        return Expert(mixture.z(self.z), self.base, self.fingerprint, description, sketch=self.sketch)

    def fits(self, base: PreTrainedModel) -> bool:
        """Whether a base has the shapes that the experts need; its weights are not looked at."""
        modules = plain_modules(base)

        def has(matrix: str, z: Tensor) -> bool:
            module = modules.get(matrix)
            return isinstance(module, nn.Linear | Conv1D) and len(z) <= min(module.weight.shape)

        return all(has(matrix, z) for name in self.names for matrix, z in self.z(name).items())

    def check_base(self, base: PreTrainedModel) -> None:
        """Raises UserError, naming both fingerprints, if the library was made for another base."""
        refuse_other_base(f"the library {self.folder}", self.fingerprint, self.sketch, base)

    def load(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """`base` with all experts of the library under their names, frozen; just the base, if there are none.

        A classification expert is among them, under the name "classifier".

        Raises:
            UserError: if the library was made for another base, or an expert is damaged.
        """
        self.check_base(base)
        model: PreTrainedModel | PeftModel = base
        for name in self.names:
            model = _attach(model, self.path(name), name)
        if self.names and self.classifier:
            model = _attach(model, self.classifier, CLASSIFIER)
        return model

    def add(
        self,
        expert: str | Path,
        name: str | None = None,
        *,
        classifier: bool = False,
        base: PreTrainedModel | None = None,
    ) -> str:
        """Copies an expert's folder into the library and returns its name there.

        Args:
            classifier: whether it names domains instead of answering; it takes the place of an earlier one.
            base: the model that it was trained on, where its folder does not say: TRL's trainers and loops of one's own
                leave that out.

        Raises:
            UserError: if the name is taken or cannot be an expert's, or the expert is damaged or of another base.
        """
        expert = Path(expert)
        name = CLASSIFIER if classifier else name or expert.resolve().name
        if not classifier:
            check_name(name)
        if self.folder.resolve().is_relative_to(expert.resolve()):
            raise UserError(f"the library {self.folder} lies inside {expert}, which it cannot copy")
        config, base_sketch = read_config(expert), read_sketch(expert)
        read_z(expert)
        marked = config.base_fingerprint is not None
        if not marked:
            if base is None:
                raise UnknownBase(f"the expert in {expert}")
            _check_fit(expert, base)
            config = replace(config, base_fingerprint=fingerprint(base), base_model_name_or_path=public_name(self.base))
            base_sketch = sketch(base)
        if is_other_base(self.fingerprint, self.sketch, config.base_fingerprint, base_sketch):
            raise UserError(
                f"the expert in {expert} belongs to a base with fingerprint {config.base_fingerprint}, "
                f"the library {self.folder} to one with {self.fingerprint}"
            )
        with self._changing():
            taken = next((other for other in self.names if other.casefold() == name.casefold()), None)
            if taken is not None:  # some file systems do not tell capitals apart
                raise UserError(f"the library has an expert {taken!r} already; remove it first, or choose another name")
            with atomic_folder(self.folder / name) as temporary:
                shutil.copytree(expert, temporary, dirs_exist_ok=True)
                if not marked:
                    config.save_pretrained(str(temporary))
                if base_sketch is not None:
                    write_sketch(temporary, base_sketch)
            if base_sketch is not None and self.sketch is None and config.base_fingerprint == self.fingerprint:
                write_sketch(self.folder, base_sketch)
            if not classifier:
                self.names.append(name)
        return name

    def remove(self, name: str) -> None:
        """Deletes an expert from the library."""
        with self._changing():
            path = self.path(name)
            self.names.remove(name)
        shutil.rmtree(path)  # after the list: a library never names an expert that is gone

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".library.lock")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Lets a block change `names` as they are now on disk, whoever else is changing them, and writes them."""
        refuse_snapshot(self.folder)
        with self._lock():
            self.names = ExpertLibrary.open(self.folder).names
            yield
            self._write()

    def _write(self) -> None:
        write_json(
            self.folder / "library.json",
            {"base": self.base, "fingerprint": self.fingerprint, "experts": self.names},
        )
