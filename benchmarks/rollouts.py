"""Sampling throughput under an expert in training (merged weights) against the plain base.

python benchmarks/rollouts.py [--rounds 7] [--rows 32] [--new-tokens 32]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from sidebyside import side_by_side
from transformers import PreTrainedModel

from experts.svf import SVFConfig
from selfadapt import load_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(10, 40_000, (options.rows, 48))

    def sample(model: PreTrainedModel | PeftModel) -> Callable[[], object]:
        return lambda: model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            min_new_tokens=options.new_tokens,
            max_new_tokens=options.new_tokens,
        )

    side_by_side(
        f"sampling {options.new_tokens} tokens for {options.rows} rows of 48, all linear layers adapted",
        {
            "base": sample(load_base()[0]),
            "SVF full rank, in training": sample(get_peft_model(load_base()[0], SVFConfig())),
            "SVF rank 64, in training": sample(get_peft_model(load_base()[0], SVFConfig(rank=64))),
        },
        against="base",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
