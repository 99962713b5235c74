"""The command line. Answers go to stdout, everything else to stderr; heavy modules are imported by the verb they serve.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

import tyro

from selfadapt.verbs.adapt import adapt
from selfadapt.verbs.compare import compare
from selfadapt.verbs.demo import demo
from selfadapt.verbs.dispatch import dispatch
from selfadapt.verbs.evaluate import evaluate
from selfadapt.verbs.experts import EXPERTS, experts
from selfadapt.verbs.export import export
from selfadapt.verbs.generate import generate
from selfadapt.verbs.import_ import import_
from selfadapt.verbs.play import play
from selfadapt.verbs.serve import serve
from selfadapt.verbs.t2l import T2L, t2l, t2l_train
from selfadapt.verbs.train import Train, train
from selfadapt.verbs.transfer import transfer
from selfadapt.verbs.usage import complain, parsed

DESCRIPTION = (
    "Language models that adapt themselves to the prompt: experts trained by reinforcement, mixed in two passes. "
    "--version prints the version of selfadapt."
)
VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": Train,
    "generate": generate,
    "play": play,
    "serve": serve,
    "dispatch": dispatch,
    "adapt": adapt,
    "eval": evaluate,
    "compare": compare,
    "experts": experts,
    "export": export,
    "transfer": transfer,
    "import": import_,
    "t2l": t2l,
}
# A verb with verbs of its own.
GROUPS: dict[str, dict[str, Callable[..., Any]]] = {
    "experts": EXPERTS,
    "t2l": T2L,
}


# Options whose empty value (`--model "$BASE"`) would silently mean the default.
NAMES = ("--model", "--library", "--to", "--output", "--output-dir", "--dispatch", "--network", "--name")


def _run(args: list[str]) -> None:
    for option, value in itertools.pairwise([*args, ""]):
        if (option in NAMES and value == "") or option in [f"{name}=" for name in NAMES]:
            complain(f"error: {option.removesuffix('=')} is empty; give it a value, or leave it out")
            sys.exit(2)
    if args == ["--version"]:
        print(f"selfadapt {version('selfadapt')}")
    elif args[:1] == ["train"] and len(args) > 1:
        train(args[1:])
    elif args[:2] == ["t2l", "train"] and len(args) > 2:
        t2l_train(args[2:])
    elif args and args[0] in GROUPS:
        group = args[0]
        _call(GROUPS[group], prog=f"selfadapt {group}", description=VERBS[group].__doc__, args=args[1:])
    else:
        _call(VERBS, prog="selfadapt", description=DESCRIPTION, args=args or ["--help"])


def _call(verbs: dict[str, Callable[..., Any]], prog: str, description: str | None, args: list[str]) -> None:
    """Parses the arguments, then calls the verb that they name."""
    understood = {name: _understood(verb) for name, verb in verbs.items()}
    about: Any = {"prog": prog, "description": description, "args": args}
    named = " ".join([prog, *(args[:1] if args[0:1] and args[0] in verbs else [])])
    parsed(lambda: tyro.extras.subcommand_cli_from_dict(understood, **about), named)()


def _understood(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Takes what `verb` takes, and returns the call. Not a `partial`, whose own docstring tyro would show."""

    @functools.wraps(verb)
    def call(*args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(verb, *args, **options)

    return call


def main() -> None:
    """The console script."""
    # PyTorch's threads spin while they wait, which costs more on a busy machine than it saves on an idle one
    # (benchmarks/busy_core.py). OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Deprecations between transformers and TRL are not the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what a terminal or a pipe cannot encode
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted")
    except BrokenPipeError:  # the reader has had enough (`| head`); Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from experts.outside.errors import UserError

        line = f"error: {' '.join(str(error).split()) or type(error).__name__}"
        if isinstance(error, UserError):
            _fail(line)
        if isinstance(error, OSError):  # a full disk, an unreadable folder, perhaps on one machine of several
            print(line, file=sys.stderr)
            sys.exit(1)
        raise


def _fail(line: str) -> NoReturn:
    complain(line)
    sys.exit(1)


if __name__ == "__main__":
    main()
