"""`selfadapt experts list|show|add|remove|push|pull`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from selfadapt.verbs import check_plot, show


def experts_list(library: Path | None = None, model: str | None = None, json: bool = False) -> None:
    """List a library's experts and LoRAs, and what each is for.

    Args:
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        model: the base whose shipped experts are meant.
        json: print them as JSON.
    """
    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    descriptions = {name: experts.description(name) for name in experts.names}
    loras = [name for name in experts.names if experts.is_lora(name)]
    document = {
        "library": str(experts.folder),
        "base": experts.base,
        "fingerprint": experts.fingerprint,
        "experts": descriptions,
        "loras": loras,
    }
    lines = [
        f"{name}{' (LoRA)' if name in loras else ''}: {description or '(no description)'}"
        for name, description in descriptions.items()
    ]
    show(document, json, "\n".join(lines) or f"{experts.folder} is empty: the base alone answers")


def experts_show(
    name: Positional[str],
    library: Path | None = None,
    model: str | None = None,
    plot: Annotated[tuple[()] | Path | None, arg(metavar="[PATH]")] = None,
    json: bool = False,
) -> None:
    """Print an expert's or a LoRA's model card; with --json, its configuration and its z, or its ranks, in figures.

    Args:
        name: the expert, or the LoRA.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        model: the base whose shipped experts are meant.
        plot: draw z − 1 by layer, kind of matrix and singular value, or how much a LoRA adds, into a new PNG file, by
            default NAME.png, and print its path instead of the card.
        json: print figures as JSON.
    """
    from dataclasses import asdict

    from selfadapt.two_pass import find_library

    experts = find_library(model, library)
    figures = asdict(experts.figures(name))
    if plot is None:
        show(figures, json, experts.card(name))
        return
    path = plot or Path(f"{name}.png")
    check_plot(path)
    experts.plot(name, path)
    show({**figures, "plot": str(path)}, json, str(path))


def experts_add(
    expert: Positional[str],
    library: Path,
    name: str | None = None,
    classifier: bool = False,
    model: str | None = None,
    description: str | None = None,
    examples: Path | None = None,
) -> None:
    """Copy an expert, or a PEFT LoRA, into a library, which is made if there is none.

    Args:
        expert: the folder that `selfadapt train` wrote, or any SVF adapter or LoRA that PEFT saved; or its repository
            on the hub, USER/NAME.
        library: the library's folder.
        name: its name there; by default the folder's, or the repository's.
        classifier: it is the expert that names domains for `--dispatch classifier`.
        model: the base that it was trained on: a built-in name, a hub id or a folder. Needed if its folder names none,
            as after TRL's trainers or a loop of your own, or another base than the library.
        description: what it is for, in one sentence, which dispatchers read; by default what its folder says.
        examples: prompts that it is for, as JSON Lines with `prompt`. The dispatcher embedding finds it by their
            embeddings, and nothing else of them is kept. `selfadapt train` stores those of the training prompts.
    """
    from dispatch.embedding import write_vectors
    from experts.library import ExpertLibrary, UnknownBase
    from experts.outside.errors import UserError
    from selfadapt.named_experts import add_expert, embed_examples

    embedded = None if examples is None else embed_examples(examples, library)  # what may fail comes first
    try:
        added = add_expert(expert, library, name, classifier=classifier, model=model, description=description)
    except UnknownBase as error:
        raise UserError(f"{error} with --model") from error
    if embedded is not None and not classifier:
        encoder, vectors = embedded
        write_vectors(ExpertLibrary.open(library).path(added), vectors, encoder)
    print(added)


def experts_remove(name: Positional[str], library: Path) -> None:
    """Delete an expert, or a LoRA, from a library.

    Args:
        name: the expert, or the LoRA.
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
        private: make the repository private.
        license: the licence of what is pushed, such as apache-2.0.
        base_model: the base's id on the hub, if the base is a folder here.
        branch: the branch to push to; by default main.
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
