"""What `judged_by` names: a ready reward, or a reward function of the user's own in TRL's signature."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from experts.domains.base import Completion, Domain, load_rows, scores_of, text_of
from experts.domains.judges.rewards import REWARDS, choice
from experts.outside.errors import UserError, unknown
from experts.outside.imports import find_object

CHECKED = 2  # rows that a reward function is called with before anything is loaded


def own_function(judged_by: str) -> str | None:
    """The place of a reward function of the user's own, None for a ready reward."""
    return judged_by if ":" in judged_by else None


def check_name(judged_by: str) -> None:
    """Raises UserError for what is neither a ready reward nor the place of a function."""
    if judged_by not in REWARDS and not own_function(judged_by):
        raise unknown("reward", judged_by, [*REWARDS, "file.py:function", "package.module:function"])


def judged(judged_by: str, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Any:
    """What completions earn: of a ready reward from `answer` and `choices`, of a function what it gives.

    A function is called as TRL calls it, where prompts are chats: with `completions`, each a list of one message, and
    with all columns by name. What TRL gives besides while it trains does nothing elsewhere.
    """
    if own_function(judged_by):
        chats = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions]
        besides = {"trainer_state": None, "log_extra": _nothing, "log_metric": _nothing}
        given = find_object(judged_by, "reward function")(completions=chats, **besides | dict(columns))
        if inspect.iscoroutine(given):  # in a thread, for a notebook has a loop of its own in this one
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, given).result()
        return given
    rows = zip(completions, columns["answer"], columns["choices"], strict=True)
    return [score(judged_by, text_of(completion), answer, choices) for completion, answer, choices in rows]


def score(judged_by: str, text: str, answer: str, choices: Sequence[str]) -> float:
    """The ready reward of one text."""
    return choice(text, answer, choices) if judged_by == "choice" else REWARDS[judged_by](text, answer)


def finds_right(judged_by: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer would earn 1, as far as that is quickly known: math-verify takes too long for every row."""
    quick = judged_by != "math_verify" and not own_function(judged_by)
    return not quick or score(judged_by, answer, answer, choices) >= 1


def check_function(domain: Domain, judged_by: str) -> None:
    """Calls a reward function with rows of the domain: once with their own answers, and once with empty completions.

    Raises:
        UserError: if it is not there, fails, or gives no numbers; or as `load_rows` does.
    """
    if not own_function(judged_by):
        return
    find_object(judged_by, "reward function")
    rows = load_rows(domain, "train")
    rows = rows.select(range(min(CHECKED, len(rows))))
    columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
    for texts in (columns["answer"], [""] * len(rows)):
        # The tokens are a base's; that there are some has to do here.
        tokens = [list(text.encode()) for text in texts]
        try:
            scores_of(domain, texts, prompts=rows["prompt"][:], completion_ids=tokens, **columns)
        except UserError as error:
            raise UserError(str(error) if any(texts) else f"{error} (for an empty completion)") from error


def _nothing(*args: Any) -> None:
    """In the place of TRL's `log_extra` and `log_metric`."""
