"""Greedy answers beside other busy programs, with threads that spin while waiting and with threads that sleep.

python benchmarks/busy_core.py [--rows 8] [--new-tokens 8]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from experts.engine import NativeEngine
from selfadapt import load_base


def answer(rows: int, new_tokens: int) -> None:
    model, tokenizer = load_base()
    prompts = [f"What is {i} + {i % 7} - 3? Answer with the number only." for i in range(rows)]
    NativeEngine(model, tokenizer).generate(prompts[:1], max_new_tokens=2)
    start = time.perf_counter()
    NativeEngine(model, tokenizer).generate(prompts, max_new_tokens=new_tokens)
    print(f"{time.perf_counter() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--child", action="store_true", help="only answer, in this process")
    options = parser.parse_args()
    if options.child:
        answer(options.rows, options.new_tokens)
        return
    for busy in range(3):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for policy in ("unset", "PASSIVE"):
                environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
                if policy != "unset":
                    environment["OMP_WAIT_POLICY"] = policy
                print(f"{busy} other busy programs, OMP_WAIT_POLICY {policy}: ", end="", flush=True)
                arguments = ["--child", "--rows", str(options.rows), "--new-tokens", str(options.new_tokens)]
                subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)
        finally:
            for other in others:
                other.kill()


if __name__ == "__main__":
    main()
