"""Experts on disk: one is a PEFT adapter folder, a library is a folder of named experts for one base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.attaching import attach_expert, attach_lora, check_fit, check_lora, fault_of_lora, load_expert
from experts.changes import plot_changes, plot_norms
from experts.exchange.difference import Difference
from experts.exchange.hub import LibraryOnTheHub
from experts.exchange.lora import Lora, mixed_loras
from experts.exchange.lora_folder import peft_type, read_lora
from experts.exchange.repository import refuse_snapshot
from experts.expert import Expert, read_config, read_z
from experts.figures import ExpertFigures, LoraFigures
from experts.mixture import Mixture
from experts.naming import check_name
from experts.outside.adapters import read_description, write_description
from experts.outside.base_names import public_name
from experts.outside.errors import UserError, unknown
from experts.outside.files import atomic_folder, check_writable, write_json
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
from experts.svf.names import plain_modules
from experts.svf.quantised import shape_of
from experts.svf.stacks import fused_parameters

__all__ = [
    "CLASSIFIER",
    "ExpertFigures",
    "ExpertLibrary",
    "LoraFigures",
    "UnknownBase",
    "check_apart",
    "check_name",
    "load_expert",
]

CLASSIFIER = "classifier"  # the folder of the expert that names domains, beside the experts that answer
# What trainers leave beside a LoRA in a checkpoint: states, some of them pickled, and the base's tokenizer.
BESIDE_LORA = ("*.bin", "*.pt", "*.pth", "trainer_state.json", "tokenizer*", "chat_template*", "checkpoint-*")

UNWRITTEN = "[More Information Needed]"
"""Found in the card that PEFT puts beside what it saves."""
LOCK = ".library.lock"


class UnknownBase(UserError):
    """An adapter's folder names no base, or another one, and the caller has not said which base it was trained on."""

    def __init__(self, adapter: str, says: str = "does not say which base it was trained on") -> None:
        super().__init__(f"{adapter} {says}; name that base")


def check_apart(expert: Path, library: Path) -> None:
    """Raises UserError if the library is, or would be, inside the expert's folder."""
    if library.resolve().is_relative_to(expert.resolve()):
        raise UserError(
            f"the library {library} lies inside {expert}, so it cannot copy that folder; choose another library"
        )


@dataclass
class ExpertLibrary(LibraryOnTheHub):
    """Named experts for one base: a folder with `library.json` and one adapter folder per expert.

    It may also hold PEFT LoRAs of the base, named like the experts. An empty library is the base.
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
            base_sketch: from `experts.svf.fingerprint.sketch`; it tells whether another base is a rounding of this one.

        Raises:
            UserError: if the folder already holds something.
        """
        folder = Path(folder)
        library = cls(folder, base, base_fingerprint, [])
        library._check_empty()  # before it gets a lock
        check_writable(folder)
        with library._lock():
            library._check_empty()
            if base_sketch is not None:
                write_sketch(folder, base_sketch)
            library._write()
        return library

    def _check_empty(self) -> None:
        if self.folder.is_file():
            raise UserError(f"{self.folder} is a file; a library is a folder")
        if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty; a new library needs a folder of its own")

    @classmethod
    def open(cls, folder: str | Path) -> ExpertLibrary:
        """Reads `library.json`; the experts themselves are read when they are asked for.

        Raises:
            UserError: if there is no library, it is damaged, or a listed expert is missing or has a forbidden name.
        """
        folder = Path(folder)
        path = folder / "library.json"
        if not path.is_file():
            why = "it has no library.json" if folder.is_dir() else "there is no such folder"
            raise UserError(f"{folder} is not a library: {why}")
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
                raise UserError(f"{path}: {error}, in this file and for its folder") from error
            if names.count(name) > 1:
                raise UserError(f"{path} names the expert {name!r} twice; remove one of the two there")
            if not (folder / name / "adapter_config.json").is_file():
                raise UserError(f"{path} names the expert {name!r}, but {folder / name} holds none; remove it there")
        return cls(folder, document["base"], document["fingerprint"], names)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """The folder of an expert or a LoRA.

        Raises:
            UserError: with the nearest names, if there is none of that name.
        """
        if name not in self.names:
            raise unknown("expert", name, self.names)
        return self.folder / name

    def config(self, name: str) -> SVFConfig:
        return read_config(self.path(name))

    def is_lora(self, name: str) -> bool:
        """Whether a name of the library is a LoRA's."""
        return peft_type(self.path(name)) == "LORA"

    def lora(self, name: str) -> Lora:
        """A LoRA of the library: what it adds to the base.

        Raises:
            UserError: if it is damaged, or is an expert.
        """
        return read_lora(self.path(name))

    def adapter(self, name: str) -> Expert | Lora:
        """The expert or LoRA of a name."""
        return self.lora(name) if self.is_lora(name) else self.expert(name)

    def description(self, name: str) -> str | None:
        """What an expert or a LoRA is for, in one sentence."""
        return read_description(self.path(name)) if self.is_lora(name) else self.config(name).description

    def descriptions(self) -> dict[str, str]:
        """Name → what it is for, in one sentence; the name itself where there is none."""
        return {name: self.description(name) or name for name in self.names}

    @property
    def classifier(self) -> Path | None:
        """The folder of the classification expert, if the library has one."""
        folder = self.folder / CLASSIFIER
        return folder if folder.is_dir() else None

    @property
    def sketch(self) -> Sketch | None:
        """The base's sketch, from `experts.svf.fingerprint.sketch`; None if none is kept."""
        return read_sketch(self.folder)

    def z(self, name: str) -> dict[str, Tensor]:
        """An expert's z, float32: matrix name → z [r], or [E, r] for a stack."""
        return read_z(self.path(name))

    def figures(self, name: str) -> ExpertFigures | LoraFigures:
        """An expert's description and figures of its z; for a LoRA, its ranks."""
        if self.is_lora(name):
            return LoraFigures.of(name, self.lora(name))
        return ExpertFigures.of(name, self.config(name), self.z(name))

    def plot(self, name: str, path: str | Path) -> None:
        """Draws an expert's z − 1 into the PNG `path`; for a LoRA, which has no z, how much it adds to each matrix."""
        if self.is_lora(name):
            plot_norms(name, self.lora(name), Path(path))
        else:
            plot_changes(name, self.z(name), Path(path))

    def card(self, name: str) -> str:
        """The model card, in Markdown; for a LoRA that has none, or only PEFT's template, what it is for."""
        card, lora = self.path(name) / "README.md", self.is_lora(name)
        text = "" if lora and not card.is_file() else read_text(card)
        return f"# {name}\n\n{self.descriptions()[name]}\n" if lora and (not text or UNWRITTEN in text) else text

    def expert(self, name: str) -> Expert:
        """An expert to calculate with: `(0.5 * library.expert("a") + library.expert("b")).write(folder)`."""
        expert = Expert.read(self.path(name))
        ours = expert.sketch is None and expert.fingerprint == self.fingerprint
        return replace(expert, sketch=self.sketch) if ours else expert

    def mixed(self, mixture: Mixture) -> Expert:
        """The expert that a mixture for one prompt amounts to: z = 1 + Σ_k α_k (z_k − 1).

        Raises:
            UserError: if the mixture names an expert that the library does not have, or a LoRA, which no z amounts to.
        """
        whole = self.difference(mixture)
        if whole.loras:
            raise UserError(f"a mixture with LoRAs in it ({mixture}) is not an expert: it has more than z")
        return whole.expert

    def difference(self, mixture: Mixture) -> Difference:
        """What a mixture for one prompt adds to the base: the difference of its experts, and of its LoRAs beside it.

        Raises:
            UserError: if the mixture names an expert that the library does not have.
        """
        for name in mixture.names:
            self.path(name)
        loras = {name: self.lora(name) for name in mixture.parts if self.is_lora(name)}
        experts = [name for name in mixture.parts if name not in loras]
        z = mixture.z(lambda name: self.z(name) if name in experts else {})
        description = f"The mixture {mixture}."
        expert = Expert(z, self.base, self.fingerprint, description, sketch=self.sketch)
        return Difference(expert, mixed_loras(mixture, loras))

    def fits(self, base: PreTrainedModel) -> bool:
        """Whether a base has the shapes that the experts need; its weights are not looked at."""
        modules, fused = plain_modules(base), fused_parameters(base)

        def has(matrix: str, z: Tensor) -> bool:
            if z.ndim == 2:
                stack = fused.get(matrix)
                return stack is not None and len(z) == len(stack) and z.shape[1] <= min(stack.shape[1:])
            module = modules.get(matrix)
            return isinstance(module, nn.Linear | Conv1D) and len(z) <= min(shape_of(module))

        for name in self.names:
            adapter = self.lora(name) if self.is_lora(name) else self.z(name)
            if isinstance(adapter, Lora):
                if fault_of_lora(adapter, base) is not None:
                    return False
            elif not all(has(matrix, z) for matrix, z in adapter.items()):
                return False
        return True

    def check_base(self, base: PreTrainedModel) -> None:
        """Raises UserError, naming both fingerprints, if the library was made for another base."""
        refuse_other_base(f"the library {self.folder}", self.fingerprint, self.sketch, base)

    def load(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """`base` with all experts of the library under their names, frozen; just the base if there are none.

        A classification expert is among them, under the name "classifier". LoRAs are carried beside the experts:
        mixtures can name them, and PEFT does not see them.

        Raises:
            UserError: if the library was made for another base, or an expert is damaged.
        """
        self.check_base(base)
        model: PreTrainedModel | PeftModel = base
        folders = {name: self.path(name) for name in self.names}
        if self.names and self.classifier:
            folders[CLASSIFIER] = self.classifier
        loras = [name for name, folder in folders.items() if peft_type(folder) == "LORA"]
        for name in [name for name in folders if name not in loras]:
            model = attach_expert(model, folders[name], name)
        for name in loras:
            lora = read_lora(folders[name])
            check_lora(f"the LoRA in {folders[name]}", lora, base)
            model = attach_lora(model, lora, name)
        return model

    def add(
        self,
        expert: str | Path,
        name: str | None = None,
        *,
        classifier: bool = False,
        base: PreTrainedModel | None = None,
        description: str | None = None,
    ) -> str:
        """Copies the folder of an expert, or of a PEFT LoRA, into the library and returns its name there.

        Args:
            classifier: whether it names domains instead of answering; it replaces an earlier one.
            base: the model that it was trained on, if its folder does not say: TRL's trainers and hand-written loops
                leave that out. A LoRA's folder only has the base's name, which must be the library's.
            description: what it is for, in one sentence, in place of what its folder says.

        Raises:
            UserError: if the name is taken or cannot be an expert's, or the adapter is damaged, belongs to another
                base, or is more than just an expert or a LoRA.
        """
        expert = Path(expert)
        name = CLASSIFIER if classifier else expert.resolve().name if name is None else name
        if not classifier:
            check_name(name)
        check_apart(expert, self.folder)
        lora = peft_type(expert) == "LORA"
        config, base_sketch = (None, None) if lora else self._check_expert(expert, base)
        if lora:
            self._check_lora(expert, base)
        with self._changing():
            taken = next((other for other in self.names if other.casefold() == name.casefold()), None)
            if taken is not None:  # some file systems do not tell capitals apart
                raise UserError(f"the library has an expert {taken!r} already; remove it first, or choose another name")
            with atomic_folder(self.folder / name) as temporary:
                left = shutil.ignore_patterns(LOCK, *(BESIDE_LORA if lora else ()))
                # Links are followed, as those of the hub's cache must be.
                shutil.copytree(expert, temporary, ignore=_and_broken_links(left), dirs_exist_ok=True)
                if config is None and description is not None:
                    write_description(temporary, description)
                elif config is not None and (description is not None or config != read_config(expert)):
                    replace(config, description=description or config.description).save_pretrained(str(temporary))
                if base_sketch is not None:
                    write_sketch(temporary, base_sketch)
            ours = config is not None and config.base_fingerprint == self.fingerprint
            if base_sketch is not None and self.sketch is None and ours:
                write_sketch(self.folder, base_sketch)
            if not classifier:
                self.names.append(name)
        return name

    def _check_expert(self, expert: Path, base: PreTrainedModel | None) -> tuple[SVFConfig, Sketch | None]:
        """The configuration and sketch that an expert has in this library; raises as `add` does."""
        config, base_sketch = read_config(expert), read_sketch(expert)
        read_z(expert)
        if config.base_fingerprint is None:
            if base is None:
                raise UnknownBase(f"the expert in {expert}")
            check_fit(expert, base)
            config = replace(config, base_fingerprint=fingerprint(base), base_model_name_or_path=public_name(self.base))
            base_sketch = sketch(base)
        self._refuse_of_other(f"the expert in {expert}", config.base_fingerprint, base_sketch)
        return config, base_sketch

    def _refuse_of_other(self, what: str, found: str | None, base_sketch: Sketch | None) -> None:
        if is_other_base(self.fingerprint, self.sketch, found, base_sketch):
            raise UserError(
                f"{what} belongs to a base with fingerprint {found}, but the library {self.folder} to one with "
                f"{self.fingerprint}"
            )

    def _check_lora(self, folder: Path, base: PreTrainedModel | None) -> None:
        """Raises as `add` does, for a LoRA."""
        what, lora = f"the LoRA in {folder}", read_lora(folder)
        if base is not None:
            self._refuse_of_other(what, fingerprint(base), sketch(base))
            check_lora(what, lora, base)
        elif lora.base is None:
            raise UnknownBase(what)
        elif public_name(lora.base) != public_name(self.base):
            raise UnknownBase(what, f"names the base {lora.base!r}, but the library {self.folder} is for {self.base!r}")

    def remove(self, name: str) -> None:
        """Deletes an expert, or a LoRA, from the library."""
        with self._changing():
            path = self.path(name)
            self.names.remove(name)
        shutil.rmtree(path)  # after the list: a library never names an expert that is gone

    def _lock(self) -> FileLock:
        return FileLock(self.folder / LOCK)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Lets a block change `names` as they are on disk now, safe from others who change them, and writes them."""
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


def _and_broken_links(left: Callable[[str, list[str]], set[str]]) -> Callable[[str, list[str]], set[str]]:
    """Also leaves out links to nothing: `copytree`'s `ignore_dangling_symlinks` takes relative links for such."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return left(folder, names) | {name for name in names if not Path(folder, name).exists()}

    return ignored
