"""An experiment: one YAML file that spells out a grid of methods × domains × seeds, and what each is evaluated on.

    domains: {sums: smollm2-135m/sums}      # name → a recipe, by name or written out
    unseen: {groups: smollm2-135m/groups} # only evaluated on
    dispatchers: [embedding, few-shot]    # how a library's experts answer there; also an expert's name
    library: my/experts                   # by default the experts that come with the base
    references: [sums]                    # the dispatchers that all others are tested against
    recipe: {test_size: 256}              # laid over the recipe of every domain
    seeds: [0]
    methods:                              # name → what it lays over that
      svf: {training: {learning_rate: [0.005, 0.01]}, seeds: [0, 1, 2]}
      lora: {adapt: {method: lora, rank: 16}, training: {learning_rate: [0.001, 0.003]}, reference: true}
    quick: {seeds: [0], methods: {lora: }, domains: {sums: }}   # a smaller grid: names select, values are laid over

The learning rates in a list are candidates: all are trained with the smallest seed, and the one that is best on the
validation split is kept for the other seeds. Dispatchers, which train nothing, are evaluated on the unseen domains
alone; an experiment may have nothing else. The base is always part of the grid; every method and dispatcher is
tested against it and against each method that is a `reference`, and dispatchers against `references`, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dispatch import DISPATCHERS, FEW_SHOT, check_dispatcher
from dispatch.text_to_lora import network_path
from experts.domains import is_judged
from experts.library import ExpertLibrary
from experts.outside.base_names import BUILT_IN, ORIGINAL
from experts.outside.errors import UserError, unknown
from experts.svf.fingerprint import FILE as SKETCH
from selfadapt.grid.cells import EXAMPLES, Cell, DispatchedCell, Evaluation, TrainedCell, base_settings, settings_of
from selfadapt.grid.results import BASE
from selfadapt.recipes import Recipe, configs_folder, find_recipe
from selfadapt.recipes.base import BaseBlock
from selfadapt.recipes.configuration import choices_of, find_file, in_our_names, make, merge, overlay, read_yaml
from selfadapt.two_pass import find_library

FIELDS = ("domains", "methods", "unseen", "dispatchers", "references", "library", "recipe", "seeds", "quick")
RECIPE_FIELDS = [*(field.name for field in fields(Recipe)), *Recipe.at_top]
METHOD_FIELDS = ("adapt", "training", *Recipe.at_top, "seeds", "reference")

BaseOf = tuple[str, str | None, BaseBlock]
"""The name, dtype and block of a base."""


@dataclass(frozen=True)
class Experiment:
    """The cells of a grid, in the order in which they are best run."""

    name: str
    cells: list[Cell]


def find_experiment(name: str) -> Path:
    """The path of a file or a shipped experiment (`methods`); raises UserError, with the nearest names, if neither."""
    root = configs_folder() / "experiments"
    return find_file("experiment", name, root.glob("*.yaml"), root)


def read_experiment(
    path: Path, *, quick: bool = False, model: str | None = None, test_size: int | None = None
) -> Experiment:
    """Reads an experiment and every recipe in it.

    Args:
        quick: the smaller grid of its quick block.
        model: another base than the recipes name, or another place of theirs.
        test_size: the number of rows of every test split, the first ones, whatever the recipes say.

    Raises:
        UserError: one line that names the file and what is wrong.
    """
    document = _mapping(read_yaml(path), f"{path}", FIELDS)
    for block in ("domains", "unseen", "methods"):
        names = _mapping(document.get(block), f"{path}: {block}")
        for name in names:
            if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)):
                raise UserError(f"{path}: {name!r} cannot be a name: use letters, digits, '-', '_' and '.'")
        read = _method if block == "methods" else _recipe
        document[block] = {name: read(value, f"{path}: {name}") for name, value in names.items()}
    asked = ["unseen"] if document.get("dispatchers") else ["domains", "methods"]
    asked += ["domains", "methods"] if document["domains"] or document["methods"] else []
    if missing := [block for block in asked if not document[block]]:
        raise UserError(
            f"{path}: {missing[0]} is missing: an experiment has domains and methods, dispatchers and unseen domains, "
            "or both"
        )
    if BASE in document["methods"]:
        raise UserError(f"{path}: {BASE} is part of every grid, so no method can have that name; choose another")
    if quick:
        document = _quick(document, path)

    told = {name: value for name, value in (("model", model), ("test_size", test_size)) if value is not None}
    shared = _with_blocks(document.get("recipe"), f"{path}: recipe", RECIPE_FIELDS) | told
    domains, unseen = (
        {name: overlay(Recipe, recipe, shared) for name, recipe in document[block].items()}
        for block in ("domains", "unseen")
    )
    if both := sorted(domains.keys() & unseen.keys()):
        raise UserError(f"{path}: {both[0]} is trained on, so it is not unseen; name it in one of the two blocks")
    recipes = {name: _untrained(recipe, f"{path}: {name}") for name, recipe in (domains | unseen).items()}
    if unjudged := [name for name, recipe in recipes.items() if not is_judged(recipe.domain)]:
        raise UserError(f"{path}: {unjudged[0]}: an experiment compares right answers; give the domain judged_by")
    if any(recipe.chat_template_kwargs for recipe in recipes.values()):
        raise UserError(f"{path}: an experiment takes no chat_template_kwargs; leave them out of its recipes")
    base = _base([*recipes.values()], path)
    model = base[0]
    evaluations = {
        name: Evaluation(recipe.domain, recipe.training.max_new_tokens, recipe.test_size)
        for name, recipe in recipes.items()
    }

    cells = [
        Cell(BASE, *base, {name: evaluation}, base_settings(*base, [evaluation]))
        for name, evaluation in evaluations.items()
    ]
    dispatchers, references = _dispatchers(document, path)
    if dispatchers:
        library = find_library(model, document.get("library"))
        of_unseen = {name: evaluations[name] for name in unseen}
        dispatched = [*_dispatched(dispatchers, library, base, of_unseen, path)]
        cells += [replace(cell, reference=cell.method in references) for cell in dispatched]
    trained: list[TrainedCell] = []
    for method, changes in document["methods"].items():
        for name in domains:
            made = _recipes(domains[name], changes, document.get("seeds"), f"{path}: {method} on {name}")
            seen = {each: evaluations[each] for each in (name, *unseen)}
            trained += _trained(method, name, made, seen, reference=changes.get("reference", False))
    for cell in trained:
        if cell.recipe.training.max_new_tokens != evaluations[cell.trained_on].max_new_tokens:
            raise UserError(
                f"{path}: {cell.method}: max_new_tokens must be the same for every method; set it in the domain's "
                "recipe"
            )
    # The smallest seeds first: they choose the learning rates.
    return Experiment(path.stem + ("-quick" if quick else ""), [*cells, *sorted(trained, key=lambda cell: cell.seed)])


def _base(recipes: Sequence[Recipe], path: Path) -> BaseOf:
    """The one base that all recipes have; raises UserError if there are several."""
    bases = [(recipe.model, recipe.dtype, recipe.base) for recipe in recipes]
    if any(base != bases[0] for base in bases):
        said = {
            " ".join(
                [model, *([f"in {dtype}"] if dtype else []), *([f"with {own}"] if (own := block.options()) else [])]
            )
            for model, dtype, block in bases
        }
        raise UserError(f"{path}: one experiment has one base, not {' and '.join(sorted(said))}")
    return bases[0]


def _dispatchers(document: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]]:
    """The dispatchers, and those of them that are references."""
    names, references = (document.get(field) or [] for field in ("dispatchers", "references"))
    for field, given in (("dispatchers", names), ("references", references)):
        if not (isinstance(given, list) and all(isinstance(name, str) for name in given)):
            raise UserError(f"{path}: {field} must be a list of names")
    for name in references:
        if name not in names:
            raise UserError(f"{path}: references: {unknown('dispatcher of this experiment', name, names)}")
    if both := sorted(document["methods"].keys() & set(names)):
        raise UserError(f"{path}: {both[0]} names both a method and a dispatcher; rename the method")
    if not isinstance(document.get("library"), str | None):
        raise UserError(f"{path}: library must be a folder")
    return list(dict.fromkeys(names)), references


def _dispatched(
    names: Sequence[str],
    library: ExpertLibrary,
    base: BaseOf,
    unseen: Mapping[str, Evaluation],
    path: Path,
) -> Iterator[DispatchedCell]:
    """A cell for every dispatcher on every unseen domain; `base` is its name, dtype and block."""
    writes = {name for name in names if name in DISPATCHERS and DISPATCHERS[name].brings_experts}
    contents = {own: _contents(library, with_network=own) for own in {name in writes for name in names}}
    options = base[2].options()
    for name in names:
        known = [*(each for each in DISPATCHERS if each != "none"), *library.names]
        if name not in known:
            raise UserError(f"{path}: {unknown('dispatcher or expert', name, known)}")
        if name != FEW_SHOT:
            check_dispatcher(name, library)
        for domain, evaluation in unseen.items():
            searched = [repr(evaluation.search), EXAMPLES] if name == FEW_SHOT else []
            told = [library.base, base[1], *([options] if options else []), contents[name in writes], name, *searched]
            settings = settings_of(told, [evaluation])
            yield DispatchedCell(name, *base, {domain: evaluation}, settings, library)


def _trained(
    method: str, domain: str, recipes: Iterable[Recipe], evaluations: Mapping[str, Evaluation], *, reference: bool
) -> Iterator[TrainedCell]:
    """A cell for every recipe that a method makes of a domain."""
    recipes = list(recipes)
    rates = frozenset(recipe.training.learning_rate for recipe in recipes)
    first_seed = min(recipe.training.seed for recipe in recipes)
    for recipe in recipes:
        settings = settings_of(recipe.to_dict(), list(evaluations.values()))
        base = (recipe.model, recipe.dtype, recipe.base)
        yield TrainedCell(method, *base, evaluations, settings, recipe, domain, reference, rates, first_seed)


def _contents(library: ExpertLibrary, *, with_network: bool) -> str:
    """A hash of the files that a library's experts and dispatchers depend on, on request with its network's."""
    folder, digest = library.folder, hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if network_path(library) in file.parents and not with_network:
            continue
        if file.suffix in (".json", ".safetensors") and file.name != SKETCH:
            # What a base is called changes nothing.
            data = file.read_bytes().replace(ORIGINAL.encode(), BUILT_IN.encode())
            digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + data)
    return digest.hexdigest()


def _untrained(document: Mapping[str, Any], where: str) -> Recipe:
    """A recipe for its domain alone: rate and steps are the methods' business, and an unseen domain has none."""
    training = {"steps": 1, **document.get("training", {}), "learning_rate": 1.0}
    return make(Recipe, {**document, "training": training}, where)


def _recipes(document: Mapping[str, Any], method: Mapping[str, Any], seeds: Any, where: str) -> Iterator[Recipe]:
    """What a method makes of a domain's recipe: one recipe for each candidate learning rate and seed."""
    document = overlay(Recipe, document, {block: method[block] for block in ("adapt", "training") if block in method})
    seeds = method.get("seeds", seeds if seeds is not None else [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise UserError(f"{where}: seeds must be a list of whole numbers")
    training = document.get("training", {})
    rates = training.get("learning_rate")
    if rates == []:
        raise UserError(f"{where}: learning_rate has no candidates; list at least one")
    for candidate in [{"learning_rate": rate} for rate in rates] if isinstance(rates, list) else [{}]:
        for seed in seeds:
            yield make(Recipe, {**document, "training": {**training, **candidate, "seed": seed}}, where)


def _quick(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The grid of the quick block: the names it has, with its values laid over theirs."""
    quick = _mapping(document.get("quick"), f"{path}: quick", FIELDS[:-1])
    if not quick:
        raise UserError(f"{path} has no quick block; add one, or leave --quick out")
    smaller = document | {key: quick[key] for key in ("seeds", "dispatchers", "references", "library") if key in quick}
    smaller["recipe"] = merge(
        *(_with_blocks(d.get("recipe"), f"{path}: recipe", RECIPE_FIELDS) for d in (document, quick))
    )
    for block in ("domains", "unseen", "methods"):
        if block in quick:
            names = _mapping(quick[block], f"{path}: quick: {block}", list(document[block]))
            smaller[block] = {
                name: merge(document[block][name], in_our_names(Recipe, _mapping(changes, f"{path}: quick: {name}")))
                for name, changes in names.items()
            }
    return smaller


def _recipe(document: Any, where: str) -> dict[str, Any]:
    """The document of a domain's recipe, by name or written out."""
    if isinstance(document, str):
        document = read_yaml(find_recipe(document))
    return _with_blocks(document, where, RECIPE_FIELDS)


def _method(document: Any, where: str) -> dict[str, Any]:
    document = _with_blocks(document, where, METHOD_FIELDS)
    if not isinstance(document.get("reference", False), bool):
        raise UserError(f"{where}: reference must be true or false")
    return document


def _with_blocks(document: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    document = _mapping(document, where, known)
    document |= {
        block: _mapping(document[block], f"{where}: {block}") for block in choices_of(Recipe) if block in document
    }
    try:
        return in_our_names(Recipe, document)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _mapping(document: Any, where: str, known: Sequence[str] | None = None) -> dict[str, Any]:
    """A block, which may be empty; with `known` None, all names are allowed."""
    if not isinstance(document, dict | None):
        raise UserError(f"{where} must be a mapping" + (f" of {', '.join(known)}" if known else ""))
    for name in document or {}:
        if known is not None and name not in known:
            raise UserError(f"{where}: {unknown('field', str(name), known)}")
    return dict(document or {})
