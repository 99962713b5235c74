"""What a judge's name means: a ready reward, the user's own reward function with TRL's signature, or a model."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.domains.base import Completion, Domain, Reward, load_rows, text_of
from experts.domains.judges import reward_model
from experts.domains.judges.rewards import REWARDS, choice
from experts.outside.errors import UserError, unknown
from experts.outside.files import expand
from experts.outside.imports import find_object

if TYPE_CHECKING:
    from datasets import Dataset

CHECKED = 2  # rows that a reward function is called with before anything is loaded


def is_ready(judge: str) -> bool:
    return judge in REWARDS


def is_function(judge: str) -> bool:
    return ":" in judge


def is_model(judge: str) -> bool:
    return not is_ready(judge) and not is_function(judge) and ("/" in judge or os.path.isdir(expand(judge)))


def check_name(judge: str) -> None:
    """Raises UserError if `judge` is neither a ready reward, nor the place of a function, nor a model."""
    if judge.endswith(".py"):
        raise UserError(f"the reward {judge} is a file; name the function in it: {judge}:name")
    if not (is_ready(judge) or is_function(judge) or is_model(judge)):
        known = [*REWARDS, "file.py:function", "package.module:function", "owner/model"]
        raise unknown("reward", judge, known)


def named(judge: str) -> str:
    """The judge's name in TRL's logs."""
    return (Path(judge).name or judge) if is_model(judge) else judge.rpartition(":")[2]


def spoken_of(judge: str) -> str:
    """The judge's name in errors."""
    return f"the reward {'function ' if is_function(judge) else 'model ' if is_model(judge) else ''}{judge}"


def judged(judge: str, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Any:
    """The scores of completions: a ready reward's from `answer` and `choices`, or whatever a function or model returns.

    A function is called as TRL calls it for prompts that are chats: with `completions`, each a list of one message, and
    with all columns by name. The further arguments that TRL passes in training do nothing elsewhere.
    """
    if is_ready(judge):
        rows = zip(completions, columns["answer"], columns["choices"], strict=True)
        return [score(judge, text_of(completion), answer, choices) for completion, answer, choices in rows]
    chats = [[{"role": "assistant", "content": c}] if isinstance(c, str) else list(c) for c in completions]
    if is_model(judge):
        return reward_model.scores(judge, columns["prompts"], chats)
    besides = {"trainer_state": None, "log_extra": _nothing, "log_metric": _nothing}
    given = find_object(judge, "reward function")(completions=chats, **besides | dict(columns))
    if inspect.iscoroutine(given):  # in a thread, because a notebook already runs an event loop in this one
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, given).result()
    return given


def score(judge: str, text: str, answer: str, choices: Sequence[str]) -> float:
    """A ready reward's score of one text."""
    return choice(text, answer, choices) if judge == "choice" else REWARDS[judge](text, answer)


def finds_right(judge: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer would earn 1, if that is quick to tell: math-verify takes too long for every row."""
    quick = is_ready(judge) and judge != "math_verify"
    return not quick or score(judge, answer, answer, choices) >= 1


def check_judge(domain: Domain, judge: str, reward: Reward) -> None:
    """Tries a reward function on rows of the domain, as `try_reward` does; checks a reward model's configuration.

    Raises:
        UserError: if the judge does not exist, fails, or gives no numbers; or as `load_rows` does.
    """
    if is_model(judge):
        reward_model.check(judge)
    if not is_function(judge):
        return
    find_object(judge, "reward function")
    try_reward(load_rows(domain, "train"), reward)


def try_reward(rows: Dataset, reward: Reward) -> None:
    """Calls a reward with a domain's first rows: once with their own answers, and once with empty completions.

    Raises:
        UserError: if it fails, or gives no numbers.
    """
    rows = rows.select(range(min(CHECKED, len(rows))))
    columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
    for texts in ([str(answer) for answer in columns["answer"]], [""] * len(rows)):
        # Real tokens would be the base's; here it is enough that there are some.
        tokens = [list(text.encode()) for text in texts]
        try:
            reward.scores(texts, prompts=rows["prompt"][:], completion_ids=tokens, **columns)
        except UserError as error:
            raise UserError(str(error) if any(texts) else f"{error} (for an empty completion)") from error


def _nothing(*args: Any) -> None:
    """Stands in for TRL's `log_extra` and `log_metric`."""
