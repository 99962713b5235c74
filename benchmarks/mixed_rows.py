"""A batch whose rows have different mixtures, against the plain base and against one expert after another.

python benchmarks/mixed_rows.py [--rounds 5] [--rows 16] [--new-tokens 64]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from sidebyside import side_by_side

from experts.svf import SVFConfig, SVFLinear
from selfadapt import load_base

MLP = r".*\.mlp\.(gate|up|down)_proj"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(10, 40_000, (options.rows, 8))
    names = [f"expert{row}" for row in range(options.rows)]

    def decode(model: Any, rows: torch.Tensor, **kwargs: Any) -> None:
        settings = {"do_sample": False, "min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens}
        with torch.inference_mode():
            model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **settings, **kwargs)

    def mixed(rank: int | None) -> tuple[Callable[[], object], Callable[[], object]]:
        """Two functions: all rows at once, each under its own expert; and one row after another, on merged weights."""
        model = get_peft_model(load_base()[0], SVFConfig(target_modules=MLP, rank=rank), adapter_name=names[0]).eval()
        for name in names[1:]:
            model.add_adapter(name, SVFConfig(target_modules=MLP, rank=rank))
        for layer in model.modules():
            if isinstance(layer, SVFLinear):
                for z in layer.svf_z.values():
                    z.data.add_(0.05 * torch.randn_like(z))

        def one_after_another() -> None:
            for row, name in enumerate(names):
                model.set_adapter(name)
                decode(model, ids[row : row + 1])

        return lambda: decode(model, ids, adapter_names=names), one_after_another

    base = load_base()[0]
    full, looped = mixed(None)
    limited, _ = mixed(64)
    side_by_side(
        f"decoding {options.new_tokens} tokens for {options.rows} rows, each with its own expert on the MLP matrices",
        {
            "base": lambda: decode(base, ids),
            "full rank": full,
            "rank 64": limited,
            "full rank, one expert after another": looped,
        },
        against="base",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
