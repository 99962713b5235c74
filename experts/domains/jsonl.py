"""A file of prompts and answers as a domain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experts.domains.base import Split, with_instruction, with_system
from experts.domains.judges.judged import Judged
from experts.outside.chats import as_chat, read_prompt
from experts.outside.errors import UserError
from experts.outside.fields import added, told
from experts.outside.reading import find_path, read_objects

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Jsonl(Judged):
    """Prompts and answers from JSON Lines, plain or gzipped.

    A line is an object with `prompt` (a string or a chat), `answer` (a string), and optionally `choices` (a list of
    strings) and `id` (else the file's name and the line's number).

    A split with a file of its own is that file. The lines of `path` are dealt out to the other splits by a hash of the
    prompt: 80 % train, 10 % validation, 10 % test; a share that is not needed goes to train. So equal prompts share a
    split, and new lines do not move old ones.
    """

    name: str
    description: str
    path: str
    """Relative to the current folder or else to `$SELFADAPT_DATA`, as are the other two."""
    judged_by: str | None = None
    """The reward's name in `experts.domains.judges.rewards`, the place of a reward function in TRL's signature
    (`rewards.py:function` or `package.module:function`), or a reward model: a folder or a hub id."""
    validation_path: str | None = None
    test_path: str | None = None
    instruction: str = ""
    """Follows the prompt's last message after a blank line."""
    system_prompt: str = added("")
    """Goes before the prompt's messages as the system's."""
    rewards: list[str] = added(default_factory=list)
    """Judges, of the same kinds, that training reinforces beside `judged_by` or instead of it."""
    reward_weights: list[float] | None = added(None)
    """The weights of `judged_by` and the rewards, in this order; by default 1 each."""

    __repr__ = told

    def __post_init__(self) -> None:
        self._check_judges()

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` and `choices` (empty if there are none).

        Raises:
            UserError: for a missing or empty file, a malformed line, or too few rows for the splits.
        """
        from datasets import Dataset, Features, List, Value

        own_path = {"train": None, "validation": self.validation_path, "test": self.test_path}[split]
        rows = self.rows(own_path) if own_path else self._instructed(self._deal()[split])
        chat = List({"role": Value("string"), "content": Value("string")})
        features = Features(id=Value("string"), prompt=chat, answer=Value("string"), choices=List(Value("string")))
        return Dataset.from_list(rows, features=features)

    def rows(self, path: str | None = None) -> list[dict[str, Any]]:
        """All rows of `path`, by default the domain's own, in order; raises as `load` does for a file."""
        return self._instructed(self._rows(path or self.path))

    def _instructed(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = list(rows)
        for row in rows:
            last = row["prompt"][-1]
            last["content"] = with_instruction(last["content"], self.instruction)
            row["prompt"] = with_system(row["prompt"], self.system_prompt, row["id"])
        return rows

    def _deal(self) -> dict[str, list[dict[str, Any]]]:
        """Deals the rows of `path` out to the splits."""
        shares = ["train"] * 8
        shares.append("train" if self.validation_path else "validation")
        shares.append("train" if self.test_path else "test")
        dealt: dict[str, list[dict[str, Any]]] = {share: [] for share in shares}
        for row in self._rows(self.path):
            digest = hashlib.sha256(json.dumps(row["prompt"]).encode()).digest()
            dealt[shares[int.from_bytes(digest) % len(shares)]].append(row)
        if not all(dealt.values()):
            counts = ", ".join(f"{share} {len(rows)}" for share, rows in dealt.items())
            raise UserError(
                f"{self.path}: too few rows for a split by prompt ({counts}); add some (40 are usually enough), or "
                "give validation_path and test_path"
            )
        return dealt

    def _rows(self, path: str) -> Iterator[dict[str, Any]]:
        file = find_path(path)
        empty = True
        for where, number, fields in read_objects(file):
            empty = False
            yield {"id": f"{file.name}:{number}", **self._row(fields, where)}
        if empty:
            raise UserError(f"{path} has no rows")

    def _row(self, fields: dict[str, Any], where: str) -> dict[str, Any]:
        for name in ("prompt", "answer"):
            if name not in fields:
                raise UserError(f"{where}: the field {name!r} is missing")
        answer, id_ = fields["answer"], fields.get("id")
        choices = fields.get("choices") or []
        chat = self._chat(fields["prompt"], where)
        if not isinstance(answer, str):
            raise UserError(f"{where}: 'answer' must be a string")
        if not (isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)):
            raise UserError(f"{where}: 'choices' must be a list of strings")
        if not isinstance(id_, str | int | None):
            raise UserError(f"{where}: 'id' must be a string or a number")
        if judge := self.finds_right(answer, choices):
            raise UserError(
                f"{where}: {judge} does not accept this row's own answer; correct it, or choose another judge"
            )
        return ({} if id_ is None else {"id": str(id_)}) | {"prompt": chat, "answer": answer, "choices": choices}

    def _chat(self, prompt: Any, where: str) -> list[dict[str, str]]:
        wanted = f"{where}: 'prompt' must be a string, or a chat of texts whose last message is from the user"
        try:
            chat = as_chat(read_prompt(prompt, "it"))
        except UserError as error:
            raise UserError(f"{wanted}: {error}") from error
        known = all(message["role"] in ROLES and isinstance(message["content"], str) for message in chat)
        if not known or chat[-1]["role"] != "user":
            raise UserError(wanted)
        return [{"role": message["role"], "content": message["content"]} for message in chat]
