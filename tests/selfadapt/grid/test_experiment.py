"""An experiment's file: which cells it makes, and what is said of a wrong one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from experts.domains.gsm8k import Gsm8k
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.training.methods import IA3, SVF, LoRA
from experts.training.reinforce import Reinforce
from experts.training.supervised import NextToken
from selfadapt.grid.cells import Cell, Evaluation, TrainedCell, settings_of
from selfadapt.grid.experiment import Experiment, find_experiment, read_experiment
from selfadapt.grid.results import Line
from selfadapt.recipes import Recipe, configs_folder
from selfadapt.recipes.configuration import overlay

DOMAIN = {"kind": "reasoning_gym", "name": "sums", "description": "Sums.", "dataset": "chain_sum"}
RECIPE = {"domain": DOMAIN, "adapt": {"rank": 8}, "training": {"learning_rate": 0.01, "steps": 2, "kl": 0.5}}
DOCUMENT: dict[str, Any] = {
    "domains": {"sums": RECIPE, "stories": "smollm2-135m/stories"},
    "unseen": {"letters": {"domain": {**DOMAIN, "dataset": "letter_counting"}}},
    "recipe": {"test_size": 8},
    "methods": {
        "svf": {},
        "lora": {
            "adapt": {"method": "lora"},
            "training": {"objective": "next_token", "learning_rate": [0.1, 0.2]},
            "seeds": [0, 1],
            "reference": True,
        },
    },
    "quick": {"domains": {"sums": None}, "unseen": {}, "methods": {"lora": {"seeds": [3]}}, "recipe": {"test_size": 2}},
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def recipe_of(cell: Cell) -> Recipe:
    assert isinstance(cell, TrainedCell)
    return cell.recipe


def names(experiment: Experiment) -> list[str]:
    return [cell.name for cell in experiment.cells]


def test_a_grid_is_methods_domains_rates_and_seeds(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, DOCUMENT))
    assert names(experiment) == [
        *("base/sums", "base/stories", "base/letters", "svf/sums/lr0.01/seed0", "svf/stories/lr0.01/seed0"),
        *("lora/sums/lr0.1/seed0", "lora/sums/lr0.2/seed0", "lora/stories/lr0.1/seed0", "lora/stories/lr0.2/seed0"),
        *("lora/sums/lr0.1/seed1", "lora/sums/lr0.2/seed1", "lora/stories/lr0.1/seed1", "lora/stories/lr0.2/seed1"),
    ]
    cells = {cell.name: cell for cell in experiment.cells}
    svf, lora = (recipe_of(cells[name]) for name in ("svf/sums/lr0.01/seed0", "lora/sums/lr0.2/seed1"))
    assert isinstance(svf.training, Reinforce)
    assert (svf.training.kl, svf.adapt) == (0.5, SVF(rank=8))
    # Another method and objective keep the fields that they know, and the seed is the cell's.
    assert lora.adapt == LoRA(rank=8)
    assert lora.training == NextToken(learning_rate=0.2, steps=2, seed=1)
    assert svf.domain == lora.domain
    assert (svf.test_size, lora.test_size) == (8, 8)
    assert [*cells["lora/sums/lr0.2/seed1"].evaluations] == ["sums", "letters"]
    assert [cell.line().reference for cell in experiment.cells] == [cell.method == "lora" for cell in experiment.cells]
    assert len({cell.settings for cell in experiment.cells}) == len(experiment.cells)


def test_names_of_trl_and_peft_lay_over_ours(tmp_path: Path) -> None:
    methods = {
        "lora": {"adapt": {"method": "lora", "r": 2}, "training": {"max_steps": 5, "beta": 0.1}},
        "short": {"training": {"steps": 3}},
    }
    quick = {"methods": {"lora": {"training": {"max_steps": 1}}}}
    document = {"domains": {"sums": RECIPE}, "methods": methods, "quick": quick}
    both = [read_experiment(written(tmp_path, document), quick=quick).cells for quick in (False, True)]
    (lora, _), (quick_lora,) = ([recipe_of(cell) for cell in cells if isinstance(cell, TrainedCell)] for cells in both)
    assert (lora.adapt, lora.training.steps, lora.training) == (LoRA(rank=2), 5, replace(quick_lora.training, steps=5))
    assert quick_lora.training.steps == 1


def test_quick_selects_and_overrides(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, DOCUMENT), quick=True)
    assert names(experiment) == ["base/sums", "lora/sums/lr0.1/seed3", "lora/sums/lr0.2/seed3"]
    assert {each.size for cell in experiment.cells for each in cell.evaluations.values()} == {2}
    assert experiment.name == "grid-quick"


def test_dispatchers_have_a_cell_on_each_unseen_domain_and_change_no_other(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    before = read_experiment(written(tmp_path, DOCUMENT))
    path = written(tmp_path, {**DOCUMENT, "dispatchers": ["few-shot", "a"], "library": str(library.folder)})
    experiment = read_experiment(path)
    new = [cell for cell in experiment.cells if cell not in before.cells]
    assert [cell.name for cell in new] == ["few-shot/letters", "a/letters"]
    assert [cell for cell in experiment.cells if cell not in new] == before.cells
    assert all(cell.is_needed([]) for cell in new)
    # Another library is another experiment.
    library.remove("b")
    assert {cell.settings for cell in read_experiment(path).cells[3:5]}.isdisjoint(cell.settings for cell in new)


def test_dispatchers_alone_and_those_that_are_references(tmp_path: Path, library: ExpertLibrary) -> None:
    alone = {key: DOCUMENT[key] for key in ("unseen", "recipe")} | {"library": str(library.folder)}
    document = alone | {"dispatchers": ["few-shot", "a", "b"], "references": ["a"]}
    experiment = read_experiment(written(tmp_path, document))
    assert names(experiment) == ["base/letters", "few-shot/letters", "a/letters", "b/letters"]
    assert [cell.name for cell in experiment.cells if cell.line().reference] == ["a/letters"]
    for change, message in (
        ({"references": ["c"]}, "references: unknown dispatcher of this experiment 'c'"),
        ({"references": "a"}, "references must be a list of names"),
        ({"unseen": {}}, "unseen is missing"),
        ({"methods": DOCUMENT["methods"]}, "domains is missing"),
        ({"dispatchers": []}, "domains is missing"),
    ):
        with pytest.raises(UserError, match=message):
            read_experiment(written(tmp_path, document | change))


def test_later_seeds_wait_for_the_choice_of_a_rate(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, DOCUMENT))
    cells = {cell.name: cell for cell in experiment.cells}
    first, later = cells["lora/sums/lr0.1/seed1"], cells["lora/sums/lr0.2/seed1"]

    def line(rate: float, right: int, error: str | None = None) -> Line:
        of = {"method": "lora", "trained_on": "sums", "evaluated_on": "sums", "seed": 0, "settings": "", "model": ""}
        return Line(**of, learning_rate=rate, validation_right=right, validation_n=10, error=error)

    assert all(cell.is_needed([]) for cell in experiment.cells if cell.line().seed == 0)
    assert first.is_needed([]) is first.is_needed([line(0.1, 9)]) is None
    assert first.is_needed([line(0.1, 3), line(0.2, 4)]) is False
    assert later.is_needed([line(0.1, 3), line(0.2, 4)]) is True
    assert first.is_needed([line(0.1, 4), line(0.2, 4)]) is True  # the smaller of equals
    assert first.is_needed([line(0.1, 3), line(0.2, 4, error="OutOfMemoryError")]) is True
    both_failed = [line(0.1, 3, error="x"), line(0.2, 4, error="x")]
    assert first.is_needed(both_failed) is later.is_needed(both_failed) is False


def test_overlay_keeps_what_it_is_not_told_to_change() -> None:
    assert overlay(Recipe, RECIPE, {}) == RECIPE
    assert overlay(Recipe, RECIPE, {"training": {"steps": 5}})["training"] == {**RECIPE["training"], "steps": 5}
    assert overlay(Recipe, RECIPE, {"adapt": {"method": "ia3"}})["adapt"] == {"method": "ia3"}
    unknown_field = overlay(Recipe, RECIPE, {"training": {"objective": "next_token", "kl": 1}})
    assert unknown_field["training"]["kl"] == 1  # so that the reader hears of it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {}}, "unknown field 'method'; did you mean 'methods'"),
        ({"methods": {}}, "methods is missing"),
        ({"methods": {"base": {}}}, "base is part of every grid, so no method can have that name"),
        ({"methods": {"a/b": {}}}, "'a/b' cannot be a name"),
        ({"methods": {"svf": {"domain": {}}}}, "svf: unknown field 'domain'"),
        ({"methods": {"svf": {"adapt": 3}}}, "svf: adapt must be a mapping"),
        ({"methods": {"svf": {"seeds": 3}}}, "seeds must be a list"),
        ({"methods": {"svf": {"training": {"max_new_tokens": 3}}}}, "must be the same for every method"),
        ({"methods": {"svf": {"adapt": {"method": "lorra"}}}}, "svf on sums: unknown method 'lorra'"),
        ({"methods": {"svf": {"training": {"learning_rate": ["fast"]}}}}, "svf on sums: training.learning_rate"),
        ({"domains": {"sums": "smollm2-135m/sumz"}}, "unknown recipe 'smollm2-135m/sumz'"),
        ({"dispatchers": "prompt"}, "dispatchers must be a list of names"),
        ({"dispatchers": ["prompt"], "library": 3}, "library must be a folder"),
        ({"dispatchers": ["promt"]}, "unknown dispatcher or expert 'promt'; did you mean 'prompt'"),
        ({"dispatchers": ["lora"]}, "lora names both a method and a dispatcher"),
        ({"unseen": {"sums": RECIPE}}, "sums is trained on, so it is not unseen"),
        ({"unseen": {"x": {**RECIPE, "model": "other"}}}, "one experiment has one base, not other and smollm2-135m"),
        (
            {"unseen": {"x": {**RECIPE, "dtype": "bfloat16"}}},
            "one experiment has one base, not smollm2-135m and smollm2-135m in bfloat16",
        ),
        ({"quick": {"methods": {"ia3": None}}}, "quick: methods: unknown field 'ia3'"),
        ({"quick": None}, "has no quick block"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, {**DOCUMENT, **change})
    with pytest.raises(UserError, match=message) as error:
        read_experiment(path, quick="quick" in change)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or "sumz" in message


def test_another_base_and_fewer_rows_than_the_recipes_say(tmp_path: Path) -> None:
    path = written(tmp_path, DOCUMENT)
    told = read_experiment(path, model="some/base", test_size=7)
    assert {cell.model for cell in told.cells} == {"some/base"}
    assert {each.size for cell in told.cells for each in cell.evaluations.values()} == {7}
    assert {cell.settings for cell in told.cells}.isdisjoint(cell.settings for cell in read_experiment(path).cells)
    with pytest.raises(UserError, match="test_size"):
        read_experiment(path, test_size=0)


def test_shots_are_among_what_results_follow_from() -> None:
    settings = {settings_of([], [Evaluation(Gsm8k(shots=shots), 8, 8)]) for shots in (0, 1, 2)}
    assert len(settings) == 3


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted((configs_folder() / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_experiments_are_valid(path: Path, quick: bool) -> None:
    experiment = read_experiment(find_experiment(path.stem), quick=quick)
    trained = any(isinstance(cell, TrainedCell) for cell in experiment.cells)
    assert any(cell.line().reference for cell in experiment.cells) or not trained
    for cell in experiment.cells:
        if isinstance(cell, TrainedCell):
            cell.recipe.adapt.config()


def test_every_method_of_the_issue_is_in_the_grid_and_only_the_named_setting_is_ablated() -> None:
    methods = {(type(cell.recipe.adapt), type(cell.recipe.training)) for cell in cells_of("methods")}
    assert {(SVF, Reinforce), (SVF, NextToken), (LoRA, Reinforce), (LoRA, NextToken), (IA3, NextToken)} <= methods

    ablations = {cell.method: cell.recipe for cell in cells_of("ablations")}
    default = asdict(ablations["mlp-64"])
    for method, recipe in ablations.items():
        other = asdict(replace(recipe, training=replace(recipe.training, learning_rate=0.02)))
        changed = {
            f"{block}.{key}"
            for block in ("adapt", "training")
            for key in other[block]
            if other[block][key] != default[block][key]
        }
        assert len(changed) == (method != "mlp-64"), (method, changed)


def cells_of(name: str) -> list[Any]:
    return [cell for cell in read_experiment(find_experiment(name)).cells if isinstance(cell, TrainedCell)]


@pytest.mark.parametrize("name", ["methods", "unseen", "ablations", "paper", "paper_unseen"])
def test_results_that_there_are_stay_those_of_the_shipped_experiments(name: str) -> None:
    results = Path(__file__).parents[3] / "docs" / "results" / name / "results.jsonl"
    known = {json.loads(line)["settings"] for line in results.read_text().splitlines()}
    sizes = {"paper": [570, 90, 500], "paper_unseen": [299]}.get(name, [None])  # docs/results.md
    path = configs_folder() / "experiments" / f"{name}.yaml"
    experiments = [read_experiment(path, test_size=size) for size in sizes]
    assert known <= {cell.settings for experiment in experiments for cell in experiment.cells}


def test_a_recipe_of_a_grid_asks_in_the_bases_usual_way(tmp_path: Path) -> None:
    document = yaml.safe_load((configs_folder() / "experiments" / "unseen.yaml").read_text())
    document["recipe"] = {**document.get("recipe", {}), "chat_template_kwargs": {"enable_thinking": False}}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="takes no chat_template_kwargs"):
        read_experiment(path)


def test_the_blocks_of_base_and_trainer_are_part_of_the_settings(tmp_path: Path) -> None:
    def settings(**changes: Any) -> dict[str, str]:
        document = {"domains": {"sums": RECIPE}, "methods": {"svf": {}}, "recipe": {"test_size": 8}} | changes
        return {cell.name: cell.settings for cell in read_experiment(written(tmp_path, document)).cells}

    plain = settings()
    revision = settings(recipe={"test_size": 8, "base": {"revision": "v1"}})
    assert not set(plain.values()) & set(revision.values())
    assert settings(recipe={"test_size": 8, "base": {}}) == plain
    drawn = settings(methods={"svf": {"trainer": {"top_p": 0.9}}})
    assert drawn["base/sums"] == plain["base/sums"]
    assert drawn["svf/sums/lr0.01/seed0"] != plain["svf/sums/lr0.01/seed0"]
    with pytest.raises(UserError, match="one experiment has one base, not smollm2-135m and smollm2-135m with"):
        settings(unseen={"letters": {"domain": DOMAIN, "base": {"revision": "v1"}}})
