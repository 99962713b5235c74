"""A domain from a file of the user's own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experts.domains import answers_of, check_domain, load_rows, scores_of
from experts.domains.module import Module
from experts.outside.chats import tokenize
from experts.outside.errors import UserError

CODE = """
from dataclasses import dataclass
from datasets import Dataset
from experts.domains import text_of

@dataclass
class Mine:
    right: str
    name: str = "mine"
    description: str = "One question."
    answers = ("yes", "no")

    def load(self, split):
        return Dataset.from_list([{"id": "0", "prompt": [{"role": "user", "content": "?"}], "answer": self.right}])

    def reward(self, completions, **columns):
        return [text_of(c) == a for c, a in zip(completions, columns["answer"])]

def nothing():
    return object()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_domain.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def test_it_is_the_users_domain(file: Path) -> None:
    domain = Module(f"{file}:Mine", {"right": "yes"})
    check_domain(domain)
    assert (domain.name, domain.description) == ("mine", "One question.")
    assert list(answers_of(domain)) == ["yes", "no"]
    rows = load_rows(domain, "train")
    assert scores_of(domain, ["yes"], answer=rows["answer"]) == [1.0]


@pytest.mark.long
def test_a_copy_for_another_process_makes_the_domain_by_itself(file: Path) -> None:
    domain = Module(f"{file}:Mine", {"right": "yes"})
    assert domain.name == "mine"  # it has been made
    data = pickle.dumps(domain)
    code = f"import pickle; print(pickle.loads({data!r}).domain.right)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "yes\n"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Mine", {}, "my_domain.py:Mine failed with TypeError: .*right"),
        ("Mine", {"left": 1}, "failed with TypeError: .*left"),
        ("Mime", {}, "did you mean 'Mine'"),
        ("nothing", {}, "has no 'name'; a domain has name, description, load, reward"),
    ],
)
def test_mistakes_are_one_line(file: Path, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        check_domain(Module(f"{file}:{name}", options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("return [len(1)]", "the reward of mine failed with TypeError"),
        ("return ['good' for c in completions]", "the reward of mine must give each completion a score"),
        ("return [1 / len(c) for c in completions]", r"division by zero \(for an empty completion\)"),
    ],
)
def test_its_reward_is_tried_before_anything_is_loaded(file: Path, reward: str, said: str) -> None:
    right = 'return [text_of(c) == a for c, a in zip(completions, columns["answer"])]'
    assert right in CODE
    file.write_text(CODE.replace(right, reward))
    with pytest.raises(UserError, match=said):
        check_domain(Module(f"{file}:Mine", {"right": "yes"}))


def test_one_without_rows_to_train_on_may_be_evaluated_on(file: Path) -> None:
    file.write_text(CODE.replace("        return Dataset", "        assert split == 'test'\n        return Dataset"))
    check_domain(Module(f"{file}:Mine", {"right": "yes"}))


def test_its_chats_may_have_a_system_message_and_several_turns(file: Path, tiny_tokenizer: Any) -> None:
    turns = '[{"role": r, "content": "?"} for r in ("system", "user", "assistant", "user")]'
    file.write_text(CODE.replace('[{"role": "user", "content": "?"}]', turns))
    (prompt,) = load_rows(Module(f"{file}:Mine", {"right": "yes"}), "train")["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert tokenize(tiny_tokenizer, [prompt])
