"""Seconds to decompose all linear layers of the built-in base, for the first time and from the cache.

python benchmarks/decomposition.py
"""

from __future__ import annotations

import os
import tempfile
import time

from peft import get_peft_model

from experts.svf import SVFConfig
from selfadapt import load_base


def main() -> None:
    base, _ = load_base()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SELFADAPT_CACHE"] = cache
        for when in ("computed", "from the cache", "from the cache"):
            start = time.perf_counter()
            model = get_peft_model(base, SVFConfig())
            print(f"{when}: {time.perf_counter() - start:.1f} s")
            base = model.unload()


if __name__ == "__main__":
    main()
