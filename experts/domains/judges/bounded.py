"""Runs judges that may never return in a process of their own, with a time limit.

Sympy can begin a power or a simplification that no signal interrupts, and so can some of reasoning-gym's judges. The
process ends itself when one answer takes too long, and the next answer gets a new process. It bounds time and survives
crashes; it is not a sandbox. It runs this file as a script, which therefore imports nothing from this package.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

# For one answer, not counting imports.
SECONDS = 5.0

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def judge(name: str, settings: Sequence[str], arguments: Sequence[str]) -> float:
    """The score that the judge JUDGES[name](*settings) gives; 0.0 if it raises, crashes or takes too long.

    Raises:
        RuntimeError: if there is no such judge, or it cannot be imported.
    """
    global _process
    with _lock:
        if _process is None or _process.poll() is not None:
            # -P: the modules beside this file must not hide the packages they are named after.
            command = [sys.executable, "-P", "-W", "ignore", __file__]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            # In a session of its own, so that Ctrl-C only reaches us. It ends when its standard input does.
            _process = subprocess.Popen(command, **pipes, start_new_session=True)
        assert _process.stdin is not None
        assert _process.stdout is not None
        ready = score = ""
        try:
            print(json.dumps([name, settings, arguments, SECONDS]), file=_process.stdin, flush=True)
            ready = _process.stdout.readline()
            score = _process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            # It has ended; or we were interrupted, and its next line would answer the wrong question.
            if not score:
                _process.kill()
                _process.communicate()
        if not ready:
            raise RuntimeError(f"the judge {name} did not start; its error message went to standard error")
        return float(score or 0.0)


@cache
def math_verify() -> Callable[[str, str], float]:
    """The judge that tells whether the expression in `text` equals `answer`."""
    from math_verify import parse, verify

    def score(answer: str, text: str) -> float:
        # A bare expression would be read as its last number.
        between = answer if re.search(r"(?<!\\)\$", answer) else f"${answer}$"
        gold = parse(between, parsing_timeout=None)
        given = parse(text, parsing_timeout=None)
        return float(verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None))

    return score


@cache
def reasoning_gym(dataset: str, parameters: str) -> Callable[[str, str], float]:
    """The judge of a generator with these parameters (JSON), for `answer` and a problem from `pack`."""
    from reasoning_gym import create_dataset

    generator = create_dataset(dataset, **json.loads(parameters), seed=0)
    return lambda answer, problem: float(generator.score_answer(answer, unpack(problem)))


JUDGES: dict[str, Callable[..., Callable[..., float]]] = {"math_verify": math_verify, "reasoning_gym": reasoning_gym}


def pack(problem: dict[Any, Any]) -> str:
    """A generator's problem as JSON, with marks on values that JSON would turn into something else."""

    def mark(value: Any) -> Any:
        match value:
            case tuple():
                return {"tuple": [mark(v) for v in value]}
            case list():
                return [mark(v) for v in value]
            case dict():
                return {"dict": [[mark(k), mark(v)] for k, v in value.items()]}
        return value

    return json.dumps(mark(problem), default=str)


def unpack(problem: str) -> dict[Any, Any]:
    """The inverse of `pack`, except that values that JSON cannot hold come back as strings."""

    def restore(marked: dict[str, list[Any]]) -> Any:
        return dict(marked["dict"]) if "dict" in marked else tuple(marked["tuple"])

    return json.loads(problem, object_hook=restore)


def _work() -> None:
    """Answers each line of standard input, `[name, settings, arguments, seconds]`, with "ready" and a score."""
    import faulthandler
    import logging
    import os

    logging.disable()
    replies = sys.stdout
    with open(os.devnull, "w") as sys.stdout:  # some judges print
        for line in sys.stdin:
            name, settings, arguments, seconds = json.loads(line)
            score = JUDGES[name](*settings)
            print("ready", file=replies, flush=True)
            # Unlike a signal, this also ends a process that is inside one long operation of C code.
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stdout)
            try:
                result = score(*arguments)
            except Exception:
                result = 0.0
            faulthandler.cancel_dump_traceback_later()
            print(result, file=replies, flush=True)


if __name__ == "__main__":
    _work()
