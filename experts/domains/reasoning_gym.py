"""The generators of reasoning-gym as domains: endless problems, judged by the generator they come from."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.rewards import find_number, find_word
from experts.errors import UserError, unknown

if TYPE_CHECKING:
    from datasets import Dataset
    from reasoning_gym.dataset import ProceduralDataset

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str
Place = Literal["text", "last_number", "last_word"]

# Judges get the end of what a model wrote: some of them take quadratic time.
LONGEST = 4000
# How many questions a generator may make, at least, until a split is full.
ATTEMPTS = 10_000


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one reasoning-gym generator.

    Each split has a seed of its own, made of its name and `seed`. A question that occurred before is dropped, where
    test comes first, then validation, then train; so the test set depends on nothing but its size. The number in a
    row's id counts the generator's problems, dropped ones included.

    The few generators whose problems depend on Python's hash seed (`PYTHONHASHSEED`) or on chance differ from run to
    run, as they do in reasoning-gym: codeio, isomorphic_strings, list_functions, polynomial_multiplication,
    ransom_note, word_ladder. A generator without a reference answer gives rows with an empty `answer`.
    """

    name: str
    description: str
    dataset: str
    """The name of the generator, such as "chain_sum"."""
    parameters: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """The generator's own settings, without `seed` and `size`."""
    instruction: str = ""
    """Follows the question after a blank line."""
    answer_in: Place = "text"
    """What the generator gets to judge: the whole text, or the last number or word in it."""
    partial_credit: bool = False
    """Whether the generator's scores between 0 and 1 are kept; otherwise they are 0."""
    train_size: int = 10_000
    validation_size: int = 256
    test_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answer_in not in get_args(Place):
            raise unknown("answer_in", self.answer_in, get_args(Place))
        for split in get_args(Split):
            if self._size(split) < 1:
                raise UserError(f"{self.name}: {split}_size must be at least 1")

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` and `entry`, the generator's problem as JSON.

        Fewer rows than asked for, with a logged warning, where the generator runs out of new questions.

        Raises:
            UserError: for an unknown generator or parameter, or if no new question is left for the split.
        """
        from datasets import Dataset

        earlier: tuple[Split, ...] = ("test", "validation", "train")
        asked: set[str] = set()
        # Some generators print, and standard output belongs to the user's own results.
        with redirect_stdout(sys.stderr):
            for before in earlier[: earlier.index(split)]:
                for _ in self._problems(before, asked):
                    pass
            rows = [self._row(split, index, problem) for index, problem in self._problems(split, asked)]
        if not rows:
            raise UserError(
                f"{self.name}: {self.dataset} has only {len(asked)} different questions with these parameters, none is "
                f"left for {split}; widen the parameters, or lower test_size and validation_size"
            )
        if len(rows) < self._size(split):
            logger.warning("%s: %d instead of %d rows for %s", self.name, len(rows), self._size(split), split)
        return Dataset.from_list(rows)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """The generator's score for each completion; needs the column `entry`."""
        return [
            self._score(text_of(completion), _unpack_json(entry))
            for completion, entry in zip(completions, columns["entry"], strict=True)
        ]

    def _size(self, split: Split) -> int:
        return {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]

    def _row(self, split: Split, index: int, problem: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"{self.dataset}-{split}-{index}",
            "prompt": [{"role": "user", "content": with_instruction(problem["question"], self.instruction)}],
            "answer": problem["answer"] or "",
            "entry": _pack_json(problem),
        }

    def _problems(self, split: Split, asked: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The split's problems whose question was not asked before, numbered; adds their questions to `asked`."""
        # Generators seed problem i with seed + i, so neighbouring seeds would share nearly all problems.
        seed = Random(f"{split} {self.seed}").getrandbits(31)
        generator = self._generator(seed=seed, size=max(ATTEMPTS, 2 * self._size(split)))
        enough = len(asked) + self._size(split)
        for index in range(len(generator)):
            problem = generator[index]
            if problem["question"] not in asked:
                asked.add(problem["question"])
                yield index, problem
                if len(asked) == enough:
                    return

    def _generator(self, **seed_and_size: int) -> ProceduralDataset:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS

        if self.dataset not in DATASETS:
            raise unknown("reasoning-gym dataset", self.dataset, DATASETS)
        config = DATASETS[self.dataset][1]
        known = sorted({f.name for f in fields(config)} - {"seed", "size"})
        for name in self.parameters:
            if name not in known:
                raise UserError(f"{self.name}: {self.dataset} has no parameter {name!r}; it has {', '.join(known)}")
        try:
            return create_dataset(self.dataset, **self.parameters, **seed_and_size)
        except (AssertionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.name}: {self.dataset} refuses its parameters ({reason}); it has {', '.join(known)}"
            ) from error

    @cached_property
    def _judge(self) -> ProceduralDataset:
        return self._generator(seed=0, size=500)

    def _score(self, text: str, problem: dict[str, Any]) -> float:
        answer = text[-LONGEST:].strip()
        if self.answer_in == "last_number":
            answer = find_number(answer, fractions="/" in (problem["answer"] or ""))
        elif self.answer_in == "last_word":
            answer = find_word(answer)
        if POISON.search(answer) or (self.dataset in EVALUATING and not _harmless(answer)):
            return 0.0
        judge = self._judge
        try:
            score = float(judge.score_answer(answer, problem))
        except Exception:  # a judge that stumbles over an answer has not found it right
            return 0.0
        if score >= 1:
            return 1.0
        return score if self.partial_credit and score > 0 else 0.0


# Numbers that some judge writes out in full, and the one that is never far from the right answer.
POISON = re.compile(r"\d e [-+]? \d{4,} | \b nan j? \b", re.IGNORECASE | re.VERBOSE)

# These generators hand the answer to Python's eval or to sympy's parser, which evaluates it too.
EVALUATING = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
    *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
}
FUNCTIONS = {"sqrt", "exp", "log", "ln", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"}
LITERAL = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Load, ast.UnaryOp, ast.USub)
FORMULA = (
    *(ast.Expression, ast.Name, ast.Load, ast.UnaryOp, ast.UAdd, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
)


def _harmless(text: str) -> bool:
    """Whether evaluating the text calls nothing and computes nothing large: a literal, a small formula, or no Python.

    >>> _harmless("[1, 2]"), _harmless("3*x**2 + sin(x)"), _harmless("1 0 1"), _harmless("9**9**9"), _harmless("exit()")
    (True, True, True, False, False)
    """
    try:
        tree = ast.parse(text, mode="eval")
    except Exception:
        # Sympy understands a little more than Python, such as 5!.
        return not set("(!") & set(text)
    nodes = list(ast.walk(tree))
    return all(isinstance(node, LITERAL) for node in nodes) or all(_is_formula(node) for node in nodes)


def _is_formula(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float) and abs(value) < 1e15
        case ast.Call(function):
            return isinstance(function, ast.Name) and function.id in FUNCTIONS
        case ast.BinOp(base, ast.Pow(), exponent):
            return _powers(base) <= 2 and _powers(exponent) == 0 and all(n <= 20 for n in _numbers(exponent))
    return isinstance(node, FORMULA)


def _powers(node: ast.AST) -> int:
    return sum(isinstance(n, ast.Pow) for n in ast.walk(node))


def _numbers(node: ast.AST) -> list[Any]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]


def _pack_json(value: Any) -> str:
    return json.dumps(_pack(value), default=str)


def _pack(value: Any) -> Any:
    """Marks what JSON would turn into something else: tuples, and dicts with keys of any kind."""
    match value:
        case tuple():
            return {"tuple": [_pack(v) for v in value]}
        case list():
            return [_pack(v) for v in value]
        case dict():
            return {"dict": [[_pack(k), _pack(v)] for k, v in value.items()]}
    return value


def _unpack_json(text: str) -> Any:
    return json.loads(text, object_hook=_unpack)


def _unpack(marked: dict[str, Any]) -> Any:
    return dict(marked["dict"]) if "dict" in marked else tuple(marked["tuple"])
