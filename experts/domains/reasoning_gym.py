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
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.bounded import judge, pack
from experts.domains.judges.final_numbers import find_number
from experts.domains.judges.rewards import find_word
from experts.domains.judges.writing import after_thoughts
from experts.outside.errors import UserError, not_installed, unknown

if TYPE_CHECKING:
    from datasets import Dataset
    from reasoning_gym.dataset import ProceduralDataset

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str
Place = Literal["text", "last_number", "last_word"]

# The judges only read the end of a text, where the answer is.
LONGEST = 4000
# How many questions a generator may make, at least, until a split is full.
ATTEMPTS = 10_000


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one reasoning-gym generator.

    Each split has its own seed, made from its name and `seed`. Test is generated first, then validation, then train,
    and a question that occurred before is dropped; so the test set depends only on its size. The number in a row's id
    counts the generator's problems, dropped ones included.

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
    """What the generator judges: the whole text, or the last number or word in it."""
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

        If the generator runs out of new questions, there are fewer rows than asked for, and a warning is logged.

        Raises:
            UserError: for an unknown generator or parameter, if no new question is left for the split, or if
                reasoning-gym is not installed.
        """
        from datasets import Dataset

        earlier: tuple[Split, ...] = ("test", "validation", "train")
        asked: set[str] = set()
        # Some generators print, and standard output is for the user's own results.
        with redirect_stdout(sys.stderr):
            for before in earlier[: earlier.index(split)]:
                for _ in self._problems(before, asked):
                    pass
            rows = [self._row(split, index, problem) for index, problem in self._problems(split, asked)]
        if not rows:
            raise UserError(
                f"{self.name}: {self.dataset} has only {len(asked)} different questions with these parameters, and "
                f"none is left for {split}; widen the parameters, or lower test_size and validation_size"
            )
        if len(rows) < self._size(split):
            logger.warning("%s: only %d rows for %s instead of %d", self.name, len(rows), split, self._size(split))
        return Dataset.from_list(rows)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """The generator's score for each completion; needs the columns `answer` and `entry`."""
        return [
            self._score(after_thoughts(text_of(completion)), answer, entry)
            for completion, answer, entry in zip(completions, columns["answer"], columns["entry"], strict=True)
        ]

    def _size(self, split: Split) -> int:
        return {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]

    def _row(self, split: Split, index: int, problem: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"{self.dataset}-{split}-{index}",
            "prompt": [{"role": "user", "content": with_instruction(problem["question"], self.instruction)}],
            "answer": problem["answer"] or "",
            "entry": pack(problem),
        }

    def _problems(self, split: Split, asked: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the split's problems that are not in `asked`, numbered; adds their questions to it."""
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
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError as error:
            raise not_installed(f"the domain {self.name}", "reasoning-gym", "reasoning-gym") from error
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
                f"{self.name}: {self.dataset} rejects its parameters ({reason}); it has {', '.join(known)}"
            ) from error

    def _score(self, text: str, answer: str, entry: str) -> float:
        given = text[-LONGEST:].strip()
        if self.answer_in == "last_number":
            given = find_number(given, fractions="/" in find_number(answer, fractions=True))
        elif self.answer_in == "last_word":
            given = find_word(given)
        # A judge that forgets to check for NaN finds it at no distance from any number (complex_arithmetic).
        if NAN.search(given) or (self.dataset in EVALUATING and not _is_data(given)):
            return 0.0
        score = judge("reasoning_gym", [self.dataset, json.dumps(self.parameters)], [given, entry])
        if score >= 1:
            return 1.0
        return score if self.partial_credit and score > 0 else 0.0


NAN = re.compile(r"\bnanj?\b", re.IGNORECASE)

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


def _is_data(text: str) -> bool:
    """Whether evaluating the text calls no code: it is a literal, a formula, or not Python at all.

    >>> _is_data("[1, 2]"), _is_data("3*x**2 + sin(x)"), _is_data("1 0 1"), _is_data("sin('exit()')")
    (True, True, True, False)
    """
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except Exception:
        # Sympy understands a little more than Python, such as 5!.
        return not set("(!") & set(text)
    return all(isinstance(node, LITERAL) for node in nodes) or all(map(_is_formula, nodes))


def _is_formula(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float)
        case ast.Call(function):
            return isinstance(function, ast.Name) and function.id in FUNCTIONS
    return isinstance(node, FORMULA)
