"""How long the first token takes if the server has read the system prompt before, against a new system prompt.

python benchmarks/kept_prefixes.py [--words 200 800] [--rounds 5]

One server answers both in turns. Each round's question is new, and a new system prompt begins with a new number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

import httpx
from serving import Server, serving
from sidebyside import side_by_side

RULE = "You answer the questions of customers who have bought bread, cheese or apples, politely and briefly. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with serving(sys.executable) as server:
        for words in options.words:
            rules = RULE * (words // len(RULE.split()))
            numbers = iter(range(1_000_000))

            def ask(known: bool, server: Server = server, rules: str = rules, numbers: Iterator[int] = numbers) -> None:
                number = next(numbers)
                first_token(server, rules if known else f"{number}. {rules}", number)

            side_by_side(
                f"first token behind {words} words",
                {"read before": partial(ask, True), "new": partial(ask, False)},
                against="new",
                rounds=options.rounds,
            )


def first_token(server: Server, system: str, number: int) -> None:
    """Asks for one token under a mixture."""
    said = [
        {"role": "system", "content": system},
        {"role": "user", "content": f"May I have {number} apples?"},
    ]
    body = {"model": "mix:sums=0.5,groups=0.2", "messages": said, "max_tokens": 1}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=None).raise_for_status()


if __name__ == "__main__":
    main()
