"""Pushes and pulls experts and libraries, with bases and libraries given by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Unpack

from transformers import PreTrainedModel

from experts.exchange.export import lora_twin
from experts.exchange.hub import EXPERT, LIBRARY, PushOptions, push_folder
from experts.exchange.lora_folder import peft_type
from experts.exchange.repository import PullOptions, fetch
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.outside.errors import UserError, unknown
from experts.outside.files import check_new_folder, new_folder
from experts.outside.reading import read_json
from selfadapt.base_models import load_base
from selfadapt.two_pass import find_library


def push_experts(
    repo: str,
    library: str | Path | None = None,
    expert: str | None = None,
    *,
    with_lora: bool = False,
    model: str | None = None,
    **options: Unpack[PushOptions],
) -> str:
    """Pushes a library, or one of its experts, or an expert's own folder, in one commit.

    Args:
        repo: the repository's id on the hub, which is made if there is none.
        expert: its name in the library, or its folder; None for the whole library.
        with_lora: put the exact LoRA beside each expert, in `lora/`; the base is loaded for that.
        model: the base; by default the one that the library or the expert names.
        options: as `ExpertLibrary.push_to_hub` takes them.

    Returns:
        The commit's address.

    Raises:
        UserError: as `ExpertLibrary.push_to_hub` and `lora_twin` do, before anything is pushed.
    """
    if library is None and expert is None:
        raise UserError("say what to push: a library's folder, or an expert's name or folder")
    if expert is not None and (Path(expert) / EXPERT).is_file():
        folder = Path(expert)
        if with_lora:
            _refuse_twin(folder)
            options["beside"] = lora_twin(_base(model or Expert.read(folder).base))
        return push_folder(folder, repo, **options)
    experts = find_library(model, library)
    if expert is not None and expert not in experts.names:
        known = unknown("expert", expert, experts.names)
        raise UserError(
            f"there is no folder {expert} with an expert in it, nor such an expert in the library {experts.folder}: "
            f"{known}"
        )
    if with_lora and expert is not None:
        _refuse_twin(experts.path(expert))
    if with_lora:
        options["beside"] = lora_twin(_base(model or experts.base))
    if expert is not None:
        return push_folder(experts.path(expert), repo, **options)
    return experts.push_to_hub(repo, **options)


def _refuse_twin(folder: Path) -> None:
    if peft_type(folder) == "LORA":
        raise UserError(f"{folder} is a LoRA itself; leave --with-lora out")


def _base(name: str | None) -> PreTrainedModel:
    if name is None:
        raise UserError("the expert does not say which base it belongs to; add it to a library, and push it from there")
    return load_base(name)[0]


def pull_experts(repo: str, folder: str | Path, **options: Unpack[PullOptions]) -> Path:
    """Pulls a library or an expert into a new folder, all or nothing.

    Raises:
        UserError: if the folder exists, or the repository holds neither or is damaged; as `fetch` does.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another folder, or remove it first")
    check_new_folder(folder)
    snapshot = fetch(repo, LIBRARY, EXPERT, **options)
    if (snapshot / LIBRARY).is_file():
        ExpertLibrary.open(snapshot)
    elif read_json(snapshot / EXPERT).get("peft_type") == "SVF":
        Expert.read(snapshot)
    with new_folder(folder) as temporary:
        shutil.copytree(snapshot, temporary, dirs_exist_ok=True)
    return folder
