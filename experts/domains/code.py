"""Domains of writing Python functions that pass their tests: MBPP, HumanEval, MBPP-Pro."""

from __future__ import annotations

import ast
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from experts.domains.base import Completion, Split, text_of, with_instruction
from experts.domains.judges.programs import program_in
from experts.domains.published import Fields, Source, load_published
from experts.domains.sandbox import run_python
from experts.outside.errors import check_whole, unknown
from experts.outside.fields import added

if TYPE_CHECKING:
    from datasets import Dataset

CodeKind = Literal["mbpp", "humaneval", "mbpp_pro"]


@dataclass(frozen=True)
class _Published:
    source: Source
    description: str
    read: Callable[[Fields], dict[str, str]]
    """Gives the columns `question`, `answer` (a right program), and `header` and `tests`, run before and after it."""


def _mbpp(fields: Fields) -> dict[str, str]:
    tests = "\n".join(fields["test_list"])
    return {
        "question": f"{fields['text']}\n\nYour code should pass these tests:\n\n{fence(tests)}",
        "answer": fields["code"].replace("\r\n", "\n"),
        "header": "",
        # It runs after the answer, because some of it makes objects of the answer's classes.
        "tests": f"{fields['test_setup_code']}\n{tests}".strip(),
    }


def _human_eval(fields: Fields) -> dict[str, str]:
    return {
        "question": f"Complete this Python function:\n\n{fence(fields['prompt'])}",
        "answer": fields["prompt"] + fields["canonical_solution"],
        # So an answer that continues where the question ends is as good as one that repeats it.
        "header": fields["prompt"],
        "tests": f"{fields['test']}\ncheck({fields['entry_point']})",
    }


def _self_invoking(fields: Fields) -> dict[str, str]:
    problems = f"{fields['raw_problem'].strip()}\n\n{fields['new_problem'].strip()}"
    return {
        "question": f"Solve both problems; the second solution should call the first.\n\n{fence(problems)}",
        "answer": f"{fields['raw_solution'].strip()}\n\n\n{fields['new_solution'].strip()}",
        "header": "",
        "tests": fields["test_code"],
    }


def fence(program: str) -> str:
    return f"```python\n{program.rstrip()}\n```"


DATASETS: dict[str, _Published] = {
    "mbpp": _Published(
        Source("mbpp", "google-research-datasets/mbpp", "text", ("full",), validation="validation"),
        "Writing short Python functions.",
        _mbpp,
    ),
    "humaneval": _Published(
        Source("humaneval", "openai/openai_humaneval", "prompt", train=None),
        "Completing a Python function from its signature and docstring.",
        _human_eval,
    ),
    "mbpp_pro": _Published(
        Source("mbpp_pro", "CodeEval-Pro/mbpp-pro", "new_problem", train=None, test="train"),
        "Writing two Python functions, of which the second calls the first.",
        _self_invoking,
    ),
}


@dataclass(frozen=True)
class Code:
    """Programming problems; an answer is right when its code runs through the problem's tests.

    Answers are run in `experts.domains.sandbox`, which must be allowed (`SELFADAPT_RUN_CODE=1`).

    MBPP has official splits; if the data at hand have no test split, test is a tenth of train
    (`experts.domains.published`). HumanEval and MBPP-Pro are for evaluation: they only have test. MBPP-Pro is made from
    problems of all splits of MBPP, so an expert that was trained on MBPP scores too well there.
    """

    kind: CodeKind
    """Which data set."""
    name: str = ""
    """By default the kind."""
    description: str = ""
    """By default the data set's own."""
    path: str | None = None
    """A local file or folder with the published fields, instead of `$SELFADAPT_DATA` or the hub."""
    instruction: str = "Answer with one block of Python code."
    """Follows the problem after a blank line."""
    shots: int = added(0, repr=False)
    """The number of solved examples from train that precede every prompt, as turns of the chat."""

    def __post_init__(self) -> None:
        if self.kind not in DATASETS:
            raise unknown("data set", self.kind, DATASETS)
        check_whole("shots", self.shots, least=0)
        object.__setattr__(self, "name", self.name or self.kind)
        object.__setattr__(self, "description", self.description or DATASETS[self.kind].description)

    @property
    def published_as(self) -> str:
        return DATASETS[self.kind].source.hub

    def load(self, split: Split) -> Dataset:
        """Rows with `id`, `prompt`, `answer` (a right program), `solution` (the same as a block), `header`, `tests`.

        Raises:
            UserError: as `load_published` does.
        """
        return load_published(DATASETS[self.kind].source, self.path, split, self._row, self.shots)

    def reward(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Whether each completion's code passes the column `tests`, after the column `header`.

        Raises:
            UserError: if running code is not allowed; never for what the code does.
        """
        programs = [
            header + program_in(text_of(completion), tests)
            for header, tests, completion in zip(columns["header"], columns["tests"], completions, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(_passes, programs, columns["tests"]))

    def check(self) -> None:
        """Raises UserError if no program can be run here."""
        run_python("")

    def _row(self, fields: Fields) -> dict[str, Any]:
        row = DATASETS[self.kind].read(fields)
        question = with_instruction(row.pop("question"), self.instruction)
        return {"prompt": [{"role": "user", "content": question}], "solution": fence(row["answer"]), **row}


def _passes(program: str, tests: str) -> float:
    # Printed at the very end, so that a program that stops before its tests end does not pass.
    word = secrets.token_hex(8)
    # After an empty line: a program that ends in a backslash continues on the next one.
    run = run_python(f"{program}\n\n{EQUAL}\n{_strict(tests)}\n__import__('os').write(1, b'{word}')\n")
    return float(run.exit_code == 0 and word in run.output)


# A value that claims to equal anything, such as unittest.mock.ANY, is equal to nothing.
EQUAL = """
def _is_equal(left, right):
    def to_anything(value):
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, (list, tuple, set, frozenset)):
            return any(map(to_anything, value))
        return (value == object()) is True
    return False if to_anything(left) or to_anything(right) else left == right
"""


class _StrictEqual(ast.NodeTransformer):
    """Replaces `a == b` with `_is_equal(a, b)`."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if not (len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq)):
            return node
        return ast.Call(ast.Name("_is_equal", ast.Load()), [node.left, *node.comparators], [])


def _strict(tests: str) -> str:
    try:
        return ast.unparse(_StrictEqual().visit(ast.parse(tests)))
    except (SyntaxError, ValueError, RecursionError):
        return tests  # they will not run
