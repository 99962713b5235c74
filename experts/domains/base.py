"""What an expert is trained on: prompts, and what an answer to one earns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from experts.outside.errors import UserError, short

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]
Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
Completion = str | Sequence[Message]


class Domain(Protocol):
    """Prompts, a reward, and a one-sentence description.

    A domain may have further attributes, which the functions below read: `answers`, all the strings that a completion
    may be, if they are few; `check()`, which raises UserError if answers cannot be judged on this machine;
    `own_reward`, the place of the user's own reward function, whose scores are any finite numbers, or None for no
    opinion; `reinforced`, a list of `Reward`, if training uses several rewards; `is_judged`, False if nothing says what
    is right, so that only next-token prediction is possible; and `published_as`, the hub's id of its data set.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One sentence that tells a dispatcher which prompts belong here."""

    def load(self, split: Split) -> Dataset:
        """The rows of a split, the same every time, with at least `id`, `prompt` (a chat) and `answer`.

        Raises:
            UserError: if there are no such rows.
        """

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """A score in [0, 1] for each completion, 1 if it is right. It never raises, whatever a model wrote.

        Args:
            completions: What the model wrote, as text or as messages.
            columns: The columns of `load`'s rows, each as long as `completions`; others are ignored.
        """


def answers_of(domain: Domain) -> Sequence[str]:
    """All the answers that a completion may give, if they are few; empty if a model may write anything."""
    return getattr(domain, "answers", ())


def check_domain(domain: Domain) -> None:
    """Checks, before any work is done, whether answers can be judged here.

    Raises:
        UserError: as the domain's own check does; a domain without one has nothing to check.
    """
    getattr(domain, "check", lambda: None)()


def own_reward(domain: Domain) -> str | None:
    """The place of the user's own reward function; None if the domain judges answers itself."""
    return getattr(domain, "own_reward", None)


def is_judged(domain: Domain) -> bool:
    """Whether anything judges answers."""
    return getattr(domain, "is_judged", True)


@dataclass(frozen=True)
class Reward:
    """One of the things that a completion earns while it is trained on."""

    name: str
    """Its name in TRL's logs."""
    who: str
    """Its name in errors."""
    give: Callable[..., Any]
    """As `Domain.reward`."""
    ready: bool
    """Whether it gives scores in [0, 1], 1 for a right answer; else any finite number, or None for no opinion."""
    weight: float = 1.0
    judges: bool = True
    """Whether it alone says what is right."""

    def scores(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """What completions earn, as plain numbers, NaN for no opinion; raises UserError as `scores_of` does."""
        return _checked(self, completions, columns)


def reinforced(domain: Domain) -> list[Reward]:
    """All that training reinforces: a domain's several rewards, or else its one reward."""
    own = own_reward(domain)
    who = f"the reward function {own}" if own else f"the reward of {domain.name}"
    return getattr(domain, "reinforced", None) or [Reward("reward", who, domain.reward, ready=own is None)]


def published_as(domain: Domain) -> str | None:
    """The hub's id of the data set that a domain is made from; None if it is not a published one."""
    return getattr(domain, "published_as", None)


ROUNDING = 1e-6  # how far a computed score may lie outside [0, 1]


def scores_of(domain: Domain, completions: Sequence[Completion], **columns: Any) -> list[float]:
    """A domain's scores of completions, as plain numbers; the domain may use NumPy, PyTorch or booleans.

    The user's own reward function may give any finite number, or None or NaN for no opinion, which becomes NaN.

    Raises:
        UserError: naming the domain or the function, if it fails or does not give each completion one number, which
            for a domain must be from 0 to 1.
    """
    own = own_reward(domain)
    who = f"the reward function {own}" if own else f"the reward of {domain.name}"
    return Reward("reward", who, domain.reward, ready=own is None).scores(completions, **columns)


def _checked(reward: Reward, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[float]:
    who = reward.who
    try:
        given: Any = reward.give(completions, **columns)
        given = list(given) if isinstance(given, Iterator) else given
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a function that ends the program has failed too
        said = " ".join(str(error).split())
        raise UserError(f"{who} failed with {type(error).__name__}: {said}") from error
    many = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | set)
    if not many or getattr(given, "ndim", 1) != 1:
        raise UserError(f"{who} must return a list of scores, one per completion, not {short(given)}")
    scores = [_score(who, score) if reward.ready else _own_score(who, score) for score in given]
    if len(scores) != len(completions):
        raise UserError(f"{who} gave {len(scores)} scores for {len(completions)} completions")
    return scores


def _score(who: str, given: Any) -> float:
    score = _number(given)
    if score is None or not -ROUNDING <= score <= 1 + ROUNDING:
        raise UserError(f"{who} must give each completion a score in [0, 1], not {short(given)}")
    return min(max(score, 0.0), 1.0)


MISSING = ("NAType", "NaTType")  # what pandas puts where there is no value


def _own_score(who: str, given: Any) -> float:
    score = math.nan if given is None or type(given).__name__ in MISSING else _number(given)
    if score is None or math.isinf(score):
        raise UserError(f"{who} must give each completion a finite number, or None, not {short(given)}")
    return score


def _number(given: Any) -> float | None:
    """`given` as a float; None if it is not a single number."""
    if isinstance(given, str | bytes) or getattr(given, "ndim", None):
        return None
    try:
        return float(getattr(given, "detach", lambda: given)())  # PyTorch warns about tensors with a gradient
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return None


def load_rows(domain: Domain, split: Split) -> Dataset:
    """The rows of a domain's split, after a check.

    Raises:
        UserError: naming the domain, if it cannot load the rows, there are none, or a column is missing.
    """
    from datasets import Dataset

    try:
        rows: Any = domain.load(split)
    except (UserError, OSError):
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise UserError(f"the {split} split of {domain.name} failed with {type(error).__name__}: {said}") from error
    if not isinstance(rows, Dataset):
        raise UserError(f"the {split} split of {domain.name} must be a datasets.Dataset, not {short(rows)}")
    if not len(rows):
        raise UserError(f"the {split} split of {domain.name} has no rows")
    if missing := [name for name in ("id", "prompt", "answer") if name not in rows.column_names]:
        raise UserError(f"the {split} split of {domain.name} lacks the column {missing[0]!r}")
    return rows


def text_of(completion: Completion) -> str:
    """The text of a completion, or of its last message if it is a list of messages.

    >>> text_of([{"role": "assistant", "content": "7"}])
    '7'
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def with_system(chat: Sequence[Message], system_prompt: str, where: str) -> list[Message]:
    """The chat, after the system message if there is one; raises UserError for a chat that already has its own."""
    if not system_prompt:
        return list(chat)
    if chat[0]["role"] == "system":
        raise UserError(f"{where}: the prompt has a system message of its own; leave system_prompt out")
    return [{"role": "system", "content": system_prompt}, *chat]


def with_instruction(question: str, instruction: str) -> str:
    """The question, followed by a blank line and the instruction if there is one."""
    return f"{question}\n\n{instruction}" if instruction else question
