"""`selfadapt experts list|show|add|remove|push|pull`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from selfadapt.verbs import show


def experts_list(library: Path | None = None, model: str | None = None, json: bool = False) -> None:
    """List a library's experts and what each is for.

    Args:
        library: a folder of experts, or a repository of the hub; by default those that come with the base.
        model: the base whose shipped experts are meant.
        json: print them as JSON.
    """
    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    descriptions = {name: experts.config(name).description for name in experts.names}
    document = {
        "library": str(experts.folder),
        "base": experts.base,
        "fingerprint": experts.fingerprint,
        "experts": descriptions,
    }
    lines = [f"{name}: {description or '(no description)'}" for name, description in descriptions.items()]
    show(document, json, "\n".join(lines) or f"{experts.folder} is empty: the base")


def experts_show(
    name: Positional[str], library: Path | None = None, model: str | None = None, json: bool = False
) -> None:
    """Print an expert's model card; with --json, its configuration and its z in figures.

    Args:
        name: the expert.
        library: a folder of experts, or a repository of the hub; by default those that come with the base.
        model: the base whose shipped experts are meant.
        json: print figures as JSON.
    """
    from dataclasses import asdict

    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    show(asdict(experts.figures(name)), json, experts.card(name))


def experts_add(
    expert: Positional[Path],
    library: Path,
    name: str | None = None,
    classifier: bool = False,
    model: str | None = None,
) -> None:
    """Copy an expert into a library, which is made if there is none.

    Args:
        expert: the folder that `selfadapt train` wrote, or any SVF adapter that PEFT saved.
        library: the library's folder.
        name: its name there; by default the folder's.
        classifier: it is the expert that names domains for `--dispatch classifier`.
        model: the base that it was trained on, if its folder does not say, as after TRL's trainers or a loop of one's
            own: a built-in name, a hub id or a folder.
    """
    from experts.library import UnknownBase
    from experts.outside.errors import UserError
    from selfadapt.named_experts import add_expert

    try:
        print(add_expert(expert, library, name, classifier=classifier, model=model))
    except UnknownBase as error:
        raise UserError(f"{error} with --model") from error


def experts_remove(name: Positional[str], library: Path) -> None:
    """Delete an expert from a library.

    Args:
        name: the expert.
        library: the library's folder.
    """
    from experts.library import ExpertLibrary

    ExpertLibrary.open(library).remove(name)


def experts_push(
    repo: Positional[str],
    library: Path | None = None,
    expert: str | None = None,
    with_lora: bool = False,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    branch: str | None = None,
    json: bool = False,
) -> None:
    """Push a library, or one expert, to the hub: one commit, under cards that the hub indexes.

    Args:
        repo: the repository on the hub, USER/NAME, which is made if there is none.
        library: a folder of experts.
        expert: push this one alone: a name in the library, or a folder that `selfadapt train` wrote.
        with_lora: put the exact LoRA beside each expert of limited rank, for programs that know nothing of SVF.
        private: make the repository a private one.
        license: of what is pushed, such as apache-2.0.
        base_model: the hub's id of the base, where the base is a folder here.
        branch: by default main.
        json: print where it is as JSON.
    """
    from selfadapt.on_the_hub import push_experts

    url = push_experts(
        repo,
        library,
        expert,
        with_lora=with_lora,
        private=private or None,
        license=license,
        base_model=base_model,
        branch=branch,
    )
    show({"repository": repo, "commit": url}, json, url)


def experts_pull(repo: Positional[str], output: Path, revision: str | None = None, json: bool = False) -> None:
    """Pull a library, or an expert, from the hub into a folder.

    Args:
        repo: the repository on the hub, USER/NAME.
        output: the folder to write.
        revision: a branch, tag or commit; by default the newest.
        json: print where it is as JSON.
    """
    from selfadapt.on_the_hub import pull_experts

    folder = pull_experts(repo, output, revision=revision)
    show({"repository": repo, "output": str(folder)}, json, str(folder))


def experts() -> None:
    """List, show, add, remove, push and pull the experts of a library."""


EXPERTS: dict[str, Callable[..., Any]] = {
    "list": experts_list,
    "show": experts_show,
    "add": experts_add,
    "remove": experts_remove,
    "push": experts_push,
    "pull": experts_pull,
}
