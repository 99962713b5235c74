"""The program in an answer: which of its blocks of code, or which lines of a text without blocks."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from experts.domains.judges.writing import TAG, after_thoughts

# A block ends where a line begins with the mark that it began with, no further in (a docstring may have marks of its
# own); without such a line it is open, and ends with the text.
BLOCK = re.compile(
    r"(?m:^(?P<indent>[ \t]*))?(?<![`~])(?P<mark>`{3,9}|~{3,9})[ \t]*(?P<language>[^\s`~]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:(?<=\n)(?:(?(indent)(?P=indent))[ ]{0,3}|[ \t]{0,3})(?P=mark)|(?P<open>\Z))",
    re.DOTALL,
)
# Marks of where a program begins and ends, in place of a block: [BEGIN], <answer>, <|im_end|>.
MARK = re.compile(
    rf"(?m)^[ \t]*(?:{TAG.pattern}|\[/?[A-Z]+\])[ \t]*$|\A\s*(?:(?:{TAG.pattern})\s*)+|(?:(?:{TAG.pattern})\s*)+\Z"
)
PYTHON = re.compile(r"\W*(?:python3?|py)?\W*", re.IGNORECASE)
BEGINS = re.compile(r"(?m)^(?:from\s+[\w.]+\s+import\b|import\s|(?:async\s+)?def\s|class\s|@\w)")
DEFINED = re.compile(r"(?m)^(?:(?:async\s+)?(?:def|class)\s+(\w+)|([A-Za-z_]\w*)\s*(?::[^=\n]*)?=(?!=))")
# How many ends of a program are tried in a text.
ENDS = 50
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def program_in(text: str, tests: str = "") -> str:
    r"""The first block of Python that defines what the tests name, after the definitions in the blocks before it.

    Without such a block it is the first that defines anything, or the lines that do in a text, or the whole text. A
    block that is indented, as in an item of a list, is read without its indentation. Of a block that breaks off, the
    statements before that count. A function without a body (`...`, `pass`) only announces one.

    >>> program_in("Here:\n```python\ndef f(): ...\n```\nUse it:\n```python\nf()\n```", "assert f() is None")
    'def f(): ...\n'
    >>> program_in("```\nimport re\n```\nThen:\n```\ndef f(): ...\n```", "assert f() is None")
    'import re\n\ndef f(): ...\n'
    >>> program_in("It is this:\ndef f():\n    return 2\nThat is all.")
    'def f():\n    return 2'
    """
    text = after_thoughts(text).replace("\r\n", "\n").removeprefix("\ufeff")
    blocks = [_code(block) for block in BLOCK.finditer(text) if PYTHON.fullmatch(block["language"])]
    wanted = _named(tests)
    fitting = [index for index, block in enumerate(blocks) if wanted & _defined(block)]
    if fitting:
        index = next((index for index in fitting if not _only_announces(blocks[index])), fitting[0])
        return "\n".join([*filter(_only_defines, blocks[:index]), blocks[index]])
    defining = [block for block in blocks if "def " in block or "class " in block]
    bare = MARK.sub("", text)
    return (defining or [*_bare_program(bare)] or blocks or [bare])[0]


def _parsed(program: str) -> list[ast.stmt]:
    """The statements of a program; none if it is not Python."""
    try:
        return ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _named(tests: str) -> set[str]:
    """The names that tests use and do not define."""
    nodes = [node for statement in _parsed(tests) for node in ast.walk(statement)]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return used - _defined(tests) - set(dir(builtins))


def _defined(program: str) -> set[str]:
    return {match[1] or match[2] for match in DEFINED.finditer(program)}


def _code(block: re.Match[str]) -> str:
    code = re.sub(f"(?m)^{block['indent'] or ''}", "", block["code"])
    if block["mark"] in code and not _parsed(code):  # meant to end it, but behind the last line or further in
        code = code.partition(block["mark"])[0]
    return code if block["open"] is None else next(_begun(code), code)


def _only_announces(program: str) -> bool:
    """Whether the program's functions have no body, as in a signature that is shown before the function."""
    functions = [node for node in _parsed(program) if isinstance(node, ast.FunctionDef)]
    return bool(functions) and all(_is_empty(statement) for function in functions for statement in function.body)


def _is_empty(statement: ast.stmt) -> bool:
    """Whether a statement is `pass`, `...` or a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(statement, ast.Pass) or isinstance(value, ast.Constant)


def _only_defines(program: str) -> bool:
    statements = _parsed(program)
    return bool(statements) and all(isinstance(statement, DEFINITIONS) for statement in statements)


def _bare_program(text: str) -> Iterator[str]:
    """The longest run of lines that is a program and begins with a definition, unless the text is one already."""
    begins = BEGINS.search(text)
    if not begins or _parsed(text) or text.lstrip("\n")[:1].isspace():
        return
    yield from _begun(text[begins.start() :])


def _begun(text: str) -> Iterator[str]:
    """The longest program that a text begins with."""
    lines = text.split("\n")
    ends = [end for end in range(1, len(lines) + 1) if end == len(lines) or lines[end][:1].strip()]
    for end in ends[: -ENDS - 1 : -1]:
        program = "\n".join(lines[:end]).rstrip()
        if _parsed(program):
            yield program
            return
