from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatch.prompt import category_question
from experts.outside.errors import UserError
from selfadapt.recipes import Classification, find_recipe, read_recipe


def test_prompts_are_asked_about_as_the_dispatcher_asks(recipe: Path, tmp_path: Path) -> None:
    other = yaml.safe_load(recipe.read_text())
    other["domain"] |= {"name": "letters", "dataset": "letter_counting", "description": "Letters."}
    (tmp_path / "letters.yaml").write_text(yaml.safe_dump(other))
    paths = [str(recipe), str(tmp_path / "letters.yaml")]
    domain = Classification(paths, train_size=20, validation_size=8, test_size=8)
    rows = domain.load("train")
    assert Counter(rows["answer"]) == {"numbers": 10, "letters": 10}
    categories = {"numbers": "Sums.", "letters": "Letters."}
    originals = {row["id"]: row["prompt"][-1]["content"] for row in read_recipe(recipe).domain.load("train")}
    for row in rows:
        if row["answer"] == "numbers":
            assert row["prompt"] == [{"role": "user", "content": category_question(categories, originals[row["id"]])}]
    assert not set(rows["id"]) & set(domain.load("test")["id"])
    assert domain.load("train").to_list() == rows.to_list()


def test_only_the_name_is_right() -> None:
    domain = Classification(["a", "b"])
    texts: list[Any] = ["sums", " Sums.\n", "It is sums", "letters", ""]
    assert domain.reward(texts, answer=["sums"] * 5) == [1, 1, 0, 0, 0]
    with pytest.raises(UserError, match="at least two"):
        Classification(["a"])


def test_the_shipped_recipe_names_the_shipped_experts() -> None:
    from experts.library import ExpertLibrary
    from experts.shipped import shipped_library

    recipe = read_recipe(find_recipe("smollm2-135m/classifier"))
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    assert isinstance(recipe.domain, Classification)
    names = [read_recipe(find_recipe(name)).domain.name for name in recipe.domain.recipes]
    assert names == ExpertLibrary.open(folder).names
