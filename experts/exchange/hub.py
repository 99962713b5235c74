"""Experts and libraries on the hub.

A library's repository holds the library's own files, an expert's those of its folder. What is pushed is a copy that
names bases as everybody knows them, under cards that the hub indexes; the folder here does not change.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, Unpack

from huggingface_hub import ModelCard, ModelHubMixin

from experts.exchange.repository import KEPT, CommitOptions, PullOptions, commit, fetch
from experts.outside.base_names import HUB_ID, is_hub_id, public_name
from experts.outside.cards import library_card, model_card
from experts.outside.errors import UserError
from experts.outside.files import expand, write_json
from experts.outside.reading import read_json, read_text

LIBRARY, EXPERT = "library.json", "adapter_config.json"
"""The files that tell what a folder holds."""
LEFT = ("completions.jsonl",)
"""Not pushed: texts of samples are only for those who trained."""
BESIDE = ("classifier", "t2l")
"""Folders in a library beside the experts that answer: the expert that names domains, and the network that writes
experts."""
TWIN = "lora"
"""The folder beside an expert that holds the LoRA equal to it."""


class PushOptions(CommitOptions, total=False):
    """Further options for what is pushed."""

    license: str | None
    """The licence of what is pushed, such as apache-2.0."""
    base_model: str | None
    """The base's id on the hub, if the base is a folder here."""
    beside: Callable[[Path], None] | None
    """Called with the copy of each expert's folder; `experts.exchange.export.lora_twin` puts a LoRA there."""


class OnTheHub(ModelHubMixin):
    """Something that has a folder and may have a repository. Its own files say everything: there is no config.json."""

    _told_by: str = EXPERT

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return object.__new__(cls)  # the mixin's __new__ would keep the arguments for a config.json

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **options: Unpack[PullOptions]
    ) -> Self:
        """Reads a folder or, if there is none of that name, a repository on the hub (owner/name).

        Raises:
            UserError: if there is neither, the hub cannot be reached and its cache does not have it, or it is damaged.
        """
        return cls._read(folder_of(pretrained_model_name_or_path, cls._told_by, **options))

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:  # type: ignore[override]
        """Pushes it in one commit to a repository, which is created if there is none.

        Returns:
            The commit's address.

        Raises:
            UserError: before anything is pushed, if the base is no model on the hub and `base_model` does not name one;
                if nobody is logged in; if the hub cannot be reached or refuses.
        """
        with TemporaryDirectory() as temporary:
            staged = Path(temporary, Path(repo_id).name)
            self.save_pretrained(staged)
            return _push(staged, repo_id, **options)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        """Reads a local folder."""
        raise NotImplementedError


class LibraryOnTheHub(OnTheHub):
    """The part of `experts.library.ExpertLibrary` that deals with the hub."""

    _told_by = LIBRARY
    folder: Path
    base: str

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        raise NotImplementedError

    def descriptions(self) -> dict[str, str]:
        raise NotImplementedError

    @classmethod
    def _read(cls, folder: Path) -> Self:
        return cls.open(folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copies the files that go to the hub, under a newly written card."""
        descriptions = self.descriptions()
        copy_kept(self.folder, save_directory)
        for name in (*descriptions, *BESIDE):
            if (self.folder / name).is_dir():
                copy_kept(self.folder / name, save_directory / name)
        cards = {name: save_directory / name / "README.md" for name in descriptions}
        read = {name: (descriptions[name], read_text(card) if card.is_file() else "") for name, card in cards.items()}
        (save_directory / "README.md").write_text(library_card(save_directory.name, self.base, read), encoding="utf-8")


def push_folder(folder: str | Path, repo: str, **options: Unpack[PushOptions]) -> str:
    """Pushes an adapter's folder as it is on disk, with its card and curve; otherwise as `OnTheHub.push_to_hub`."""
    folder = Path(folder)
    if not (folder / EXPERT).is_file():
        raise UserError(f"{folder} is not an expert: it has no {EXPERT}")
    with TemporaryDirectory() as temporary:
        staged = Path(temporary, folder.resolve().name)
        copy_kept(folder, staged)
        return _push(staged, repo, **options)


def folder_of(name: str | Path, *told_by: str, **options: Unpack[PullOptions]) -> Path:
    """The folder of that name here or, if there is none, the copy of a repository in the hub's cache.

    Args:
        told_by: files, of which a repository must have one.

    Raises:
        UserError: as `fetch` does.
    """
    place = expand(name)
    if place.exists() or not HUB_ID.fullmatch(str(name)):
        return place
    try:
        return fetch(str(name), *told_by, **options)
    except UserError as error:
        raise UserError(f"there is no folder {name} here, and fetching it from the hub failed: {error}") from error


def copy_kept(folder: Path, target: Path) -> None:
    """Copies a folder's files that go to the hub; of the folders below it, only the LoRA equal to an expert."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (file for pattern in KEPT for file in folder.glob(pattern)):
        if file.is_file() and file.name not in LEFT and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)
    if (folder / TWIN / EXPERT).is_file():
        copy_kept(folder / TWIN, target / TWIN)


def _push(staged: Path, repo: str, **options: Unpack[PushOptions]) -> str:
    """Prepares the copy in `staged` for the hub and pushes it; raises as `OnTheHub.push_to_hub` does."""
    given, license = options.get("base_model"), options.get("license")
    if given is not None and not HUB_ID.fullmatch(given):
        raise UserError(f"the base {given!r} must be a model on the hub (owner/name)")
    if beside := options.get("beside"):
        for folder in sorted(path.parent for path in staged.rglob(EXPERT) if path.parent.name != TWIN):
            beside(folder)
    if (staged / LIBRARY).is_file():
        document = read_json(staged / LIBRARY)
        _mend_card(staged / "README.md", _known("the library", document["base"], given), license)
        if given is not None:
            write_json(staged / LIBRARY, document | {"base": given})
    for path in staged.rglob(EXPERT):
        config = read_json(path)
        base = _known(f"the adapter {path.parent.name}", config.get("base_model_name_or_path"), given)
        write_json(path, config | {"base_model_name_or_path": base})
        _mend_card(path.parent / "README.md", base, license)
    card = staged / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(f"path/to/{staged.name}", repo), encoding="utf-8")
    return commit(staged, repo, options)


def _known(what: str, base: str | None, given: str | None) -> str:
    """The base's id on the hub: the one given, or the one that the adapter names."""
    name = given or public_name(base)
    if name is None or (given is None and not is_hub_id(name)):
        says = (
            f"names the base {name!r}, which is not a model on the hub" if name else "does not say which base it is for"
        )
        raise UserError(f"{what} {says}; name the base with base_model=, or --base-model on the command line")
    return name


def _mend_card(path: Path, base: str, license: str | None) -> None:
    """Makes sure that a card's front matter names the base, and the licence if one is given."""
    text = read_text(path) if path.is_file() else f"# {path.parent.name}\n"
    if not text.startswith("---\n"):
        text = model_card(text, base, [])
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.base_model = base
    data.license = license or data.license
    card.save(path)
