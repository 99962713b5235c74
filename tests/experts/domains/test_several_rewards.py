"""Several rewards, reward models, and domains that nothing judges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase
from trl import RLOOConfig, RLOOTrainer

from experts.domains import check_domain, is_judged, load_rows, own_reward, reinforced, scores_of
from experts.domains.jsonl import Jsonl
from experts.outside.errors import UserError
from selfadapt.recipes import Recipe
from selfadapt.recipes.configuration import in_our_names

CODE = """
def first(prompts, completions, **columns):
    return [1.0, None, None][: len(completions)]

def second(completions, **columns):
    return [10.0, 20.0, float("nan")][: len(completions)]

def broken(completions, **columns):
    return ["good"] * len(completions)
"""


def domain(tmp_path: Path, **options: Any) -> Jsonl:
    (tmp_path / "rewards.py").write_text(CODE, encoding="utf-8")
    rows = [{"prompt": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Jsonl("sums", "Sums.", str(tmp_path / "rows.jsonl"), **options)


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    return [f"{tmp_path / 'rewards.py'}:{name}" for name in ("first", "second")]


@pytest.fixture
def reward_model(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A random classifier with one logit, in a folder."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(**sizes, vocab_size=len(tiny_tokenizer), num_labels=1, pad_token_id=0, bos_token_id=1)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tiny_tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_the_total_leaves_out_who_has_no_opinion(tmp_path: Path, places: list[str]) -> None:
    several = domain(tmp_path, rewards=places, reward_weights=[3.0, 0.5])
    scores = scores_of(several, ["a", "b", "c"], prompts=["?"] * 3)
    assert scores == pytest.approx([8.0, 10.0, math.nan], nan_ok=True)
    assert own_reward(several) == ", ".join(places)
    assert [(each.name, each.weight, each.judges) for each in reinforced(several)] == [
        ("first", 3.0, False),
        ("second", 0.5, False),
    ]
    check_domain(several)


def test_what_is_right_is_judged_by_alone_where_it_is_there(tmp_path: Path, places: list[str]) -> None:
    beside = domain(tmp_path, judged_by="exact", rewards=places[1:])
    columns = {"answer": ["1", "2"], "choices": [[], []], "prompts": ["?", "?"]}
    assert scores_of(beside, ["1", "1"], **columns) == [1.0, 0.0]
    assert own_reward(beside) is None
    assert [(each.name, each.ready, each.judges) for each in reinforced(beside)] == [
        ("exact", True, True),
        ("second", False, False),
    ]


def test_functions_of_one_name_are_told_apart(tmp_path: Path, places: list[str]) -> None:
    (tmp_path / "others.py").write_text(CODE)
    other = f"{tmp_path / 'others.py'}:first"
    assert [each.name for each in reinforced(domain(tmp_path, rewards=[places[0], other]))] == [places[0], other]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rewards": ["exact", "exakt"]}, "unknown reward 'exakt'; did you mean 'exact'"),
        ({"rewards": ["exact"], "judged_by": "exact"}, "the reward exact is listed twice"),
        ({"rewards": ["exact"], "reward_weights": [1.0, 2.0]}, "one for each of: exact"),
        ({"reward_weights": [1.0]}, "one for each of: none"),
        ({"rewards": ["exact"], "reward_weights": [math.nan]}, "must be numbers"),
    ],
)
def test_rewards_that_are_none(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        domain(tmp_path, **options)


def test_the_one_that_fails_is_named(tmp_path: Path, places: list[str]) -> None:
    several = domain(tmp_path, rewards=[places[0], f"{tmp_path / 'rewards.py'}:broken"])
    with pytest.raises(UserError, match=r"the reward function .*:broken must give each completion .* not 'good'"):
        check_domain(several)


def test_nothing_need_judge(tmp_path: Path) -> None:
    bare = domain(tmp_path)
    assert not is_judged(bare)
    check_domain(bare)
    assert len(load_rows(bare, "train"))
    with pytest.raises(UserError, match="nothing says which answers are right"):
        scores_of(bare, ["1"])


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ({"reward": "a.py:f"}, {"judged_by": "a.py:f"}),
        ({"reward": ["a.py:f"]}, {"judged_by": "a.py:f"}),
        ({"reward": ["a.py:f", "exact"]}, {"rewards": ["a.py:f", "exact"]}),
        ({"reward": "a.py:f", "judged_by": "exact"}, {"rewards": ["a.py:f"], "judged_by": "exact"}),
        (
            {"reward": ["a.py:f"], "reward_weights": [2], "judged_by": "exact"},
            {"rewards": ["a.py:f"], "reward_weights": [2], "judged_by": "exact"},
        ),
    ],
    ids=str,
)
def test_reward_in_a_recipe_is_one_or_several(block: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert in_our_names(Recipe, {"domain": {"kind": "jsonl", **block}}) == {"domain": {"kind": "jsonl", **wanted}}


def test_a_reward_model_gives_what_trl_has_it_give(
    tmp_path: Path, reward_model: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    mine = domain(tmp_path, judged_by=str(reward_model), system_prompt="Be brief.")
    check_domain(mine)
    assert own_reward(mine) == str(reward_model)
    rows = load_rows(mine, "train").select(range(3))
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    said = [[{"role": "assistant", "content": text}] for text in ("4", "a longer answer", "")]
    ours = scores_of(mine, said, prompts=rows["prompt"][:])
    arguments = RLOOConfig(str(tmp_path / "run"), beta=0.0, bf16=False, use_cpu=True, report_to="none")
    trainer = RLOOTrainer(tiny_model, str(reward_model), arguments, rows, processing_class=tiny_tokenizer)
    inputs = [{"prompt": prompt} for prompt in rows["prompt"]]
    theirs = trainer._calculate_rewards(inputs, rows["prompt"][:], said, [[1]] * 3)
    assert ours == pytest.approx(theirs[:, 0].tolist(), abs=1e-6)
    assert len(set(ours)) == 3
    assert [each.name for each in reinforced(mine)] == trainer.reward_func_names == ["judge"]


def test_what_is_no_reward_model_is_said_before_anything_is_loaded(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"the reward model .*tiny is a LlamaForCausalLM, not a sequence classifier"):
        check_domain(domain(tmp_path, judged_by=str(tiny_folder)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the reward model .* cannot be loaded"):
        check_domain(domain(tmp_path, rewards=[str(tmp_path / "empty"), "exact"]))
