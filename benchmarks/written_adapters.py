"""A separate LoRA for every row of a batch, against one LoRA for all; and a LoRA for 7B shapes from a sentence.

python benchmarks/written_adapters.py [--rounds 7] [--rows 8] [--tokens 64]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from sidebyside import side_by_side
from torch import nn
from transformers import MistralConfig

from experts.text_to_lora import TextToAdapter
from experts.text_to_lora.encoder import SentenceEncoder
from experts.text_to_lora.network import LoraOutput, LowRank, Written
from experts.text_to_lora.rows import adapted_rows
from experts.text_to_lora.shapes import read_matrices
from selfadapt import load_base

DESCRIPTIONS = [f"Write about the number {number} in a sentence." for number in range(64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    encoder = SentenceEncoder()

    base, _ = load_base()
    output = LoraOutput()
    writer = TextToAdapter.untrained(output, read_matrices(base, output.target_modules), encoder)
    for head in writer.network.heads:
        nn.init.normal_(head.linear.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    ids = torch.randint(10, 40_000, (options.rows, options.tokens))

    def forward(written: Written) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> None:
            with adapted_rows(base, written, scaling=output.scaling):
                base(ids)

        return run

    def backward(written: Written) -> Callable[[], object]:
        leaves = {name: LowRank(*(part.clone().requires_grad_() for part in pair)) for name, pair in written.items()}

        def run() -> None:
            with adapted_rows(base, leaves, scaling=output.scaling):
                base(ids).logits.mean().backward()

        return run

    base.requires_grad_(False)
    one, own = writer.write(DESCRIPTIONS[:1]), writer.write(DESCRIPTIONS[: options.rows])
    for what, run in (("forward", forward), ("forward and backward", backward)):
        side_by_side(
            f"{what} of {options.rows} × {options.tokens} tokens, rank 8 on q and v",
            {
                "one LoRA for all rows": run(one),
                "a LoRA for every row": run(own),
            },
            against="one LoRA for all rows",
            rounds=options.rounds,
        )
    mistral(encoder, options.rounds)


def mistral(encoder: SentenceEncoder, rounds: int) -> None:
    """Times networks for a base of which only the configuration is there."""
    config = MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    matrices = read_matrices(config, LoraOutput().target_modules)
    writers = {
        size: TextToAdapter.untrained(LoraOutput(size=size), matrices, encoder)  # type: ignore[arg-type]
        for size in "LMS"
    }
    side_by_side(
        "a sentence → a LoRA for Mistral-7B, without its weights",
        {f"network {size}": partial(writer.generate, DESCRIPTIONS[:1]) for size, writer in writers.items()},
        against="network L",
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
