"""A CSV file and a reward function of the user's own, from the recipe to the expert."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from safetensors.torch import load_file

from experts.outside.errors import UserError
from experts.training.log import Log
from selfadapt.recipes import read_recipe

REWARDS = """
import numpy as np

def closeness(prompts, completions, completion_ids, target, answer, **columns):
    assert all(prompt[0]["role"] == "system" for prompt in prompts)
    assert answer == target
    written = [completion[-1]["content"] for completion in completions]
    distances = np.array([abs(len(text) - len(right)) for text, right in zip(written, target)])
    return [None if ids == [] else -distance for ids, distance in zip(completion_ids, distances)]
"""


@pytest.fixture
def mine(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for one step on `mine.csv`, judged by `rewards.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        rows = [["question", "target"], *([f"What is {n} + 1?", f"{n + 1:03}"] for n in range(60))]
        csv.writer(file).writerows(rows)
    (tmp_path / "rewards.py").write_text(REWARDS)
    document = yaml.safe_load(recipe.read_text())
    document["domain"] = {
        "kind": "hub",
        "name": "mine",
        "description": "Sums.",
        "path": "mine.csv",
        "prompt_column": "question",
        "answer_column": "target",
        "system_prompt": "Be brief.",
        "reward": "rewards.py:closeness",
    }
    document["training"]["steps"] = 1
    recipe.write_text(yaml.safe_dump(document))
    return recipe


def change(recipe: Path, block: str, **fields: Any) -> None:
    document = yaml.safe_load(recipe.read_text())
    document[block] |= fields
    recipe.write_text(yaml.safe_dump(document))


def test_train(mine: Path, run: Any, tmp_path: Path) -> None:
    code, out, err = run("train", mine, "--output", tmp_path / "expert", "--log-completions", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["base_reward"] < 0
    assert report["expert_reward"] < 0
    log = Log(tmp_path / "expert" / "training_log.jsonl")
    sampled = next(entry for entry in log.entries() if "reward" in entry)
    assert sampled["reward"] < 0  # as the function gives it: not +1 and -1
    completions = [json.loads(line) for line in (tmp_path / "expert" / "completions.jsonl").read_text().splitlines()]
    assert all(entry["reward"] == round(entry["reward"]) for entry in completions)
    assert float(log.accuracies()[1]) == next(
        e["mean_reward"] for e in log.entries() if e.get("step") == 1 and "n" in e
    )
    card = (tmp_path / "expert" / "README.md").read_text()
    assert "mean reward -" in card
    assert "reward: raw" in card
    assert "judged_by: rewards.py:closeness" in card


def test_a_reward_without_any_opinion_changes_nothing(mine: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def closeness(prompts, **columns):\n    return [None] * len(prompts)\n")
    code, out, err = run("train", mine, "--output", tmp_path / "expert", "--log-completions", "--json")
    assert code == 0, err
    assert json.loads(out)["expert_reward"] is None
    entries = Log(tmp_path / "expert" / "training_log.jsonl").entries()
    assert [entry["reward"] for entry in entries if "reward" in entry] == [None]
    z = load_file(tmp_path / "expert" / "adapter_model.safetensors")
    assert all((value == 1).all() for value in z.values())


def test_what_is_wrong_with_a_reward_is_said_before_the_base_is_loaded(mine: Path, run: Any, tmp_path: Path) -> None:
    change_model = yaml.safe_load(mine.read_text()) | {"model": "nowhere"}
    mine.write_text(yaml.safe_dump(change_model))
    (tmp_path / "rewards.py").write_text("def closeness(completions, solution):\n    return [1.0]\n")
    code, _, err = run("train", mine)
    assert code
    assert "the reward function rewards.py:closeness failed with TypeError" in err
    change(mine, "domain", prompt_column="qestion")
    assert "unknown column 'qestion'; did you mean 'question'?" in run("train", mine)[2]
    assert not (tmp_path / "runs").exists()


def test_a_reward_of_ones_own_is_raw_and_others_are_signed(mine: Path, run: Any) -> None:
    assert read_recipe(mine).training.reward == "raw"  # type: ignore[union-attr]
    change(mine, "training", reward="signed")
    assert read_recipe(mine).training.reward == "signed"  # type: ignore[union-attr]
    change(mine, "training", reward=None)
    change(mine, "domain", reward="last_number")
    assert read_recipe(mine).training.reward == "signed"  # type: ignore[union-attr]
    change(mine, "domain", judged_by="exact")
    assert "domain has both reward and judged_by, two names for one thing" in run("train", mine)[2]


def test_a_domain_of_ones_own(mine: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "my_domain.py").write_text(
        "from experts.domains.hub import Hub\n\n\ndef mine(**fields):\n    return Hub('mine', 'Sums.', **fields)\n"
    )
    document = yaml.safe_load(mine.read_text())
    fields = {"prompt_column": "question", "answer_column": "target", "judged_by": "last_number"}
    document["domain"] = {"kind": "module", "path": "my_domain.py:mine", "options": {"path": "mine.csv"}, **fields}
    mine.write_text(yaml.safe_dump(document))
    assert read_recipe(mine).to_dict()["domain"]["options"] == {"path": "mine.csv", **fields}
    whole = mine.read_text()
    change(mine, "domain", reward="what other kinds call judged_by is this one's own affair")
    with pytest.raises(UserError, match="unexpected keyword argument 'reward'"):
        read_recipe(mine)
    mine.write_text(whole)
    code, out, err = run("train", mine, "--output", tmp_path / "expert", "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 4
    assert "--domain.path" in run("train", mine, "--help")[1]


SEVERAL = """
def closeness(completions, target, **columns):
    return [-abs(len(said[-1]["content"]) - len(right)) for said, right in zip(completions, target)]

def silent(completions, **columns):
    return [None] * len(completions)

def halves(completions, **columns):
    return [1.0 if index % 2 else None for index, _ in enumerate(completions)]
"""


def test_several_rewards_are_summed_and_logged_each(mine: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(SEVERAL)
    names = ["closeness", "silent", "halves"]
    change(mine, "domain", reward=[f"rewards.py:{name}" for name in names], reward_weights=[0.5, 1, 2])
    code, out, err = run("train", mine, "--output", tmp_path / "out", "--json", "--log-completions")
    assert code == 0, err
    assert json.loads(out)["base_reward"] <= 2
    (entry,) = [entry for entry in Log(tmp_path / "out" / "training_log.jsonl").entries() if "reward" in entry]
    means = {name: entry[f"rewards/{name}/mean"] for name in names}
    assert means["silent"] is None
    assert means["halves"] == 1
    assert entry["reward"] == pytest.approx(0.5 * means["closeness"] + 2 * 0.5, abs=1e-4)
    assert entry["accuracy"] >= 0
    for line in Log(tmp_path / "out" / "completions.jsonl").entries():
        of_half = line["rewards"]["halves"] or 0
        assert line["reward"] == pytest.approx(0.5 * line["rewards"]["closeness"] + 2 * of_half)
        assert line["rewards"]["silent"] is None
    assert "rewards.py:halves" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_right_is_judged_beside_what_is_reinforced(mine: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(SEVERAL)
    change(mine, "domain", reward=["rewards.py:closeness"], judged_by="last_number", reward_weights=[2, 0.1])
    recipe = read_recipe(mine)
    assert recipe.training.reward is None  # type: ignore[union-attr]
    code, out, err = run("train", mine, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    assert "base_reward" not in json.loads(out)
    (entry,) = [entry for entry in Log(tmp_path / "out" / "training_log.jsonl").entries() if "reward" in entry]
    signed = 2 * entry["accuracy"] - 1
    assert entry["rewards/last_number/mean"] == pytest.approx(signed)
    assert entry["reward"] == pytest.approx(2 * signed + 0.1 * entry["rewards/closeness/mean"], abs=1e-4)


def test_next_tokens_need_no_judge(mine: Path, run: Any, tmp_path: Path) -> None:
    document = yaml.safe_load(mine.read_text())
    del document["domain"]["reward"]
    mine.write_text(yaml.safe_dump(document))
    assert "domain.judged_by is missing: reinforce needs to know which answers are right" in run("train", mine)[2]
    document["training"] = {
        **{"objective": "next_token", "learning_rate": 0.05, "steps": 3, "sequences_per_step": 8},
        **{"max_new_tokens": 4, "validate_every": 1, "validation_size": 4},
    }
    mine.write_text(yaml.safe_dump(document))
    code, out, err = run("train", mine, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["expert_loss"] < report["base_loss"]
    assert {"n", "p_value"} <= report.keys()
    assert "base_accuracy" not in report
    figures = Log(tmp_path / "out" / "training_log.jsonl").validations()
    assert report["best_step"] == min((step for step in figures if step), key=figures.__getitem__)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "nats a token (n = 4)" in card
    assert "most common answer" not in card
    assert "held-out rows: base loss" in err


def test_chats_may_end_with_their_answer(mine: Path, tmp_path: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Yes?"), ("user", "{}?"), ("assistant", "{}!")]
    rows = [{"messages": [{"role": r, "content": c.format(n)} for r, c in turns]} for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = yaml.safe_load(mine.read_text())
    document["domain"] = {
        **{
            "kind": "hub",
            "name": "chats",
            "description": "Chats.",
            "path": "chats.jsonl",
            "system_prompt": "Be brief.",
        },
        **{"prompt_column": "messages", "answer_column": None},
    }
    document["training"] = {"objective": "next_token", "learning_rate": 0.05, "steps": 1}
    mine.write_text(yaml.safe_dump(document))
    row = read_recipe(mine).domain.load("train")[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert row["answer"] == row["prompt"][-1]["content"].replace("?", "!")


def test_the_base_is_loaded_as_its_block_says(mine: Path, run: Any) -> None:
    assert "is not a hub id, so it has no revision 'v1'" in run("train", mine, "--base.revision", "v1")[2]
    document = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump(document | {"base": {"attn_implementation": "nothing"}}))
    code, _, err = run("train", mine)
    assert code == 1
    assert "nothing" in err
    assert "\n" not in err.strip()
