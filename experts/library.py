"""Experts on disk: one is a PEFT adapter folder, a library is a folder of named experts for one base."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from experts.errors import UserError, unknown
from experts.expert import PREFIX, SUFFIX, Expert, read_config, read_z
from experts.files import atomic_folder, write_json
from experts.fingerprint import fingerprint
from experts.model_card import Card
from experts.svf import SVFConfig
from experts.svf.names import fault_in_adapter_name, plain_modules

# `--dispatch NAME` takes a dispatcher's name or an expert's, so an expert cannot have one of these.
CLASSIFIER = "classifier"  # the folder of the expert that names domains, beside those that answer
RESERVED_NAMES = frozenset({"none", "base", "other", "prompt", "classifier", "embedding", "few-shot", "t2l", "auto"})


# An expert's name is an adapter's in PEFT, a folder's on any file system, and a word of the command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
WINDOWS_DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9]", re.IGNORECASE)


def check_name(name: str) -> None:
    """Raises UserError, with the reason, if no expert of a library can have this name."""
    fault = fault_in_adapter_name(name)
    if fault is None and name.casefold() in RESERVED_NAMES:
        fault = f"--dispatch {name.casefold()} means something else"
    if fault is None and WINDOWS_DEVICES.fullmatch(name):
        fault = "Windows keeps it for a device"
    if fault is None and not NAME.fullmatch(name):
        fault = "it must have at most 100 letters from A to Z, digits, '-' and '_', a letter or digit first"
    if fault is not None:
        raise UserError(f"{name!r} cannot name an expert: {fault}; choose another name")


def write_expert(folder: Path, model: PeftModel, card: Card) -> None:
    """Writes the active adapter of `model` and its card into an existing folder."""
    config: Any = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = card.base
    if isinstance(config, SVFConfig):
        config.base_fingerprint = card.fingerprint
        config.domain = card.domain
        config.description = card.description
    # The embeddings are never adapted; PEFT would ask the hub about their size.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def load_expert(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the expert of `folder` active and frozen.

    Raises:
        UserError: if the expert is damaged or was trained on another base.
    """
    wanted = read_config(folder).base_fingerprint
    if wanted is not None:
        refuse_other_base(f"the expert in {folder}", wanted, base)
    return _attach(base, folder, "default")


def _attach(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Adds an expert to a model, after a look at every vector that PEFT would stumble over."""
    config, vectors = read_config(folder), read_z(folder)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = plain_modules(plain)
    for matrix, z in vectors.items():
        weight = getattr(modules.get(matrix), "weight", None)
        if weight is None:
            raise UserError(f"the expert in {folder} adapts {matrix}, which the base does not have")
        rank = min(*weight.shape, config.rank_of(matrix) or len(z))
        if len(z) != rank:
            raise UserError(f"the expert in {folder} has {len(z)} values for {matrix}, which needs {rank}")
    config.inference_mode = True
    config.base_model_name_or_path = None  # PEFT puts the base's own name there, with a warning if it differs
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = cast(PeftModel, get_peft_model(model, config, name))
    # Not by PEFT's own reader, which would load embeddings that the file may hold into the base.
    set_peft_model_state_dict(model, {f"{PREFIX}{matrix}{SUFFIX}": z for matrix, z in vectors.items()}, name)
    return model.eval()


def refuse_other_base(what: str, wanted: str, base: PreTrainedModel) -> None:
    """Raises UserError, naming both fingerprints, if `base` does not have the one wanted."""
    found = fingerprint(base)
    if found != wanted:
        raise UserError(f"{what} belongs to a base with fingerprint {wanted}, this one has {found}; load that base")


@dataclass
class ExpertLibrary:
    """Named experts for one base: a folder with `library.json` and one adapter folder an expert.

    An empty library is the base.
    """

    folder: Path
    base: str
    fingerprint: str
    names: list[str]

    @classmethod
    def create(cls, folder: str | Path, base: str, base_fingerprint: str) -> ExpertLibrary:
        """An empty library in a new or empty folder.

        Raises:
            UserError: if the folder holds something already.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; a new library needs a folder of its own")
        library = cls(folder, base, base_fingerprint, [])
        library._write()
        return library

    @classmethod
    def open(cls, folder: str | Path) -> ExpertLibrary:
        """Reads `library.json`; the experts themselves are read when they are asked for.

        Raises:
            UserError: if there is no library, a listed expert is missing, or one has a name that none can have.
        """
        folder = Path(folder)
        path = folder / "library.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a library: it has no library.json")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            library = cls(folder, document["base"], document["fingerprint"], list(document["experts"]))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: it must hold base, fingerprint and a list of experts") from error
        if len(set(map(str, library.names))) < len(library.names):
            raise UserError(f"{path} is damaged: it names an expert twice")
        for name in library.names:
            try:
                check_name(name)
            except UserError as error:
                raise UserError(f"{path}: {error}, there and for its folder") from error
            if not (folder / name / "adapter_config.json").is_file():
                raise UserError(f"{path} names the expert {name!r}, but {folder / name} holds none; remove it there")
        return library

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

    def z(self, name: str) -> dict[str, Tensor]:
        """Matrix name → z [r] of an expert, float32."""
        return read_z(self.path(name))

    def expert(self, name: str) -> Expert:
        """An expert to calculate with: `(0.5 * library.expert("a") + library.expert("b")).write(folder)`."""
        return Expert.read(self.path(name))

    def check_base(self, base: PreTrainedModel) -> None:
        """Raises UserError, naming both fingerprints, if the library was made for another base."""
        refuse_other_base(f"the library {self.folder}", self.fingerprint, base)

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

    def add(self, expert: str | Path, name: str | None = None, *, classifier: bool = False) -> str:
        """Copies an expert's folder into the library and returns its name there.

        Args:
            classifier: whether it names domains instead of answering; it takes the place of an earlier one.

        Raises:
            UserError: if the name is taken or cannot be an expert's, or the expert is damaged or of another base.
        """
        expert = Path(expert)
        name = CLASSIFIER if classifier else name or expert.resolve().name
        if not classifier:
            check_name(name)
        taken = next((other for other in self.names if other.casefold() == name.casefold()), None)
        if taken is not None:  # some file systems do not tell capitals apart
            raise UserError(f"the library has an expert {taken!r} already; remove it first, or choose another name")
        config = read_config(expert)
        read_z(expert)
        if config.base_fingerprint != self.fingerprint:
            raise UserError(
                f"the expert in {expert} belongs to a base with fingerprint {config.base_fingerprint}, "
                f"the library {self.folder} to one with {self.fingerprint}"
            )
        with atomic_folder(self.folder / name) as temporary:
            shutil.copytree(expert, temporary, dirs_exist_ok=True)
        if not classifier:
            self.names.append(name)
            self._write()
        return name

    def remove(self, name: str) -> None:
        """Deletes an expert from the library."""
        path = self.path(name)
        self.names.remove(name)
        self._write()  # first the list: a library never names an expert that is gone
        shutil.rmtree(path)

    def _write(self) -> None:
        write_json(
            self.folder / "library.json",
            {"base": self.base, "fingerprint": self.fingerprint, "experts": self.names},
        )


def shipped_library(base_name: str) -> Path | None:
    """The folder of the experts that come with the package for a base, or None."""
    folder = Path(__file__).parent / "shipped" / base_name
    return folder if (folder / "library.json").is_file() else None
