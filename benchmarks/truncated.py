"""CPU seconds of rank 64 and of the full decomposition, on random matrices [m, n] with a decaying spectrum, one thread.

python benchmarks/truncated.py [--shapes 1024x4096 4096x4096] [--rank 64]
"""

from __future__ import annotations

import argparse
import time

import torch

from experts.svf.truncated import largest_triplets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1024x4096", "4096x4096"])
    parser.add_argument("--rank", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shapes:
        m, n = map(int, shape.split("x"))
        few = min(m, n)
        w = torch.randn(max(m, n), few, generator=torch.Generator().manual_seed(1))
        w *= torch.arange(1, few + 1).pow(-0.2)
        w = w if m >= n else w.T.contiguous()
        start = time.thread_time()
        _, s, _ = largest_triplets(w, options.rank, w.new_zeros(m, 0), w.new_zeros(0), w.new_zeros(0, n))
        truncated = time.thread_time() - start
        start = time.thread_time()
        whole = torch.linalg.svd(w, full_matrices=False)[1][: options.rank]
        full = time.thread_time() - start
        error = ((s - whole).abs() / whole).max()
        print(
            f"{shape}: full {full:.2f} s, truncated {truncated:.2f} s, {full / truncated:.1f} x, s within {error:.0e}"
        )


if __name__ == "__main__":
    main()
