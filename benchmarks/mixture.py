"""The memory of experts on the matrices of a mixture of experts, by arithmetic, for the shapes of Qwen3-30B-A3B.

python benchmarks/mixture.py [--ranks 4 8 16]

Nothing is loaded, and none of this was run on a GPU.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from experts.svf.decomposition import FIRST
from experts.svf.factored import ALIGNED
from experts.svf.stacks import fused_parameters

QWEN3_30B_A3B = Qwen3MoeConfig(
    vocab_size=151_936,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    tie_word_embeddings=False,
)
"""As it is published."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 8, 16])
    ranks = parser.parse_args().ranks
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(QWEN3_30B_A3B)
    stacks = {name: tuple(parameter.shape) for name, parameter in fused_parameters(base).items()}  # [E, m, n]
    attention = [tuple(m.weight.shape) for n, m in base.named_modules() if "self_attn" in n and n.endswith("_proj")]
    layers = QWEN3_30B_A3B.num_hidden_layers
    sides = sum(e * (m + n) for e, m, n in stacks.values())
    matrices = sum(e for e, _, _ in stacks.values())
    print(f"base, bfloat16: {2 * sum(p.numel() for p in base.parameters()):,} bytes")
    print(f"of which the stacks: {2 * sum(e * m * n for e, m, n in stacks.values()):,} bytes, {matrices:,} matrices")
    print(f"cache of decompositions: {4 * FIRST * (sides + matrices):,} bytes")
    for rank in ranks:
        lasting = 2 * rank * sides + 4 * rank * matrices
        scaled = rank * sum(e * m for e, m, _ in stacks.values()) // layers  # U diag(s·δ) of one layer
        padded = -(-rank // ALIGNED) * ALIGNED if rank % ALIGNED else 0  # copies for grouped products
        made = 6 * scaled + 2 * padded * sides // layers
        beside = sum(2 * rank * (m + n) + 4 * rank for m, n in attention)
        print(
            f"rank {rank}: factors {lasting:,} bytes (attention's {beside:,}); z {rank * matrices:,} numbers, with "
            f"gradient and AdamW {16 * rank * matrices:,} bytes; {made:,} bytes are built for each layer while it runs"
        )


if __name__ == "__main__":
    main()
