"""The command line. Answers go to stdout, everything else to stderr; what is heavy is imported by the verb it serves.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

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
from selfadapt.verbs.t2l import T2L, t2l, t2l_train
from selfadapt.verbs.train import Train, train
from selfadapt.verbs.transfer import transfer

DESCRIPTION = (
    "Language models that adapt themselves to the prompt: experts trained by reinforcement, mixed in two passes."
)
VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": Train,
    "generate": generate,
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


def _run(args: list[str]) -> None:
    if args[:1] == ["train"] and len(args) > 1:
        train(args[1:])
    elif args[:2] == ["t2l", "train"] and len(args) > 2:
        t2l_train(args[2:])
    elif args and args[0] in GROUPS:
        group = args[0]
        tyro.extras.subcommand_cli_from_dict(
            GROUPS[group], prog=f"selfadapt {group}", description=VERBS[group].__doc__, args=args[1:]
        )
    else:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="selfadapt", description=DESCRIPTION, args=args)


def main() -> None:
    """The console script."""
    # PyTorch's threads spin while they wait, which costs more on a busy machine than it saves on an idle one
    # (benchmarks/busy_core.py). OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Deprecations between transformers and TRL are not the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        from experts.errors import UserError

        # An OSError is the machine's: a full disk, a folder that may not be read. It names the file itself.
        if not isinstance(error, UserError | OSError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
