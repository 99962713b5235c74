"""The memory that training an expert needs on a card, by arithmetic: what stays, and what comes and goes.

python benchmarks/fits.py [--card 24] [--hours [--processes 8]]

It covers every shipped recipe of rank 64 on bases of 4 to 8 billion parameters, in bfloat16 on cards of 24 and 80 GB,
and in four and eight bits on 12 and 16 GB. `--hours` gives the time of those for GSM8K. `benchmarks/memory.py` measures
the same components on the built-in base. None of this was run on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config

LLAMA = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_key_value_heads": 8}
BASES: dict[str, PreTrainedConfig] = {
    "Qwen3-4B": Qwen3Config(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B-Instruct": LlamaConfig(**LLAMA, num_attention_heads=32, vocab_size=128_256),
    "Mistral-7B-Instruct-v0.3": MistralConfig(**LLAMA, num_attention_heads=32, vocab_size=32_768),
    "Mistral-7B-Instruct-v0.2": MistralConfig(**LLAMA, num_attention_heads=32, vocab_size=32_000),
}
"""As they are published."""
LOGITS = 3 * 4 * 2**26
"""A piece of logits, its softmax and its gradient, in float32 (`experts/training/token_logps.py`)."""
MLP = ("gate_proj", "up_proj", "down_proj")
BYTES = {None: (2.0, 0), "nf4": (0.5 + 1 / 64 + 4 / (64 * 256), 0), "int8": (1.0, 4)}
"""Bytes of a weight in a linear layer, and beside each row: NF4 has a one-byte scale for 64 weights, and a float32
scale for 256 of those; int8 has a float32 scale for each row."""


@dataclass(frozen=True)
class Step:
    """What a step of a recipe holds at once."""

    tokens: int
    """The tokens of a prompt and its completion."""
    micro_batch: int
    checkpointing: bool


@dataclass(frozen=True)
class Needs:
    """Bytes."""

    base: int
    factors: int
    backward: int
    """What is kept of a micro-batch for the backward pass, and the logits."""
    cache: int
    """Keys and values of one sequence."""

    @property
    def stays(self) -> int:
        return self.base + self.factors

    def sequences(self, card: float) -> int:
        """The sequences sampled at once on a card of `card` bytes: their cache takes up half of what is left."""
        return int((card - self.stays) / 2 // self.cache)


def base_bytes(base: nn.Module, quantization: str | None) -> int:
    """The bytes of a model on the meta device: linear layers except the head in few bits, all else in bfloat16."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    linear = [m.weight.shape for m in base.modules() if isinstance(m, nn.Linear) and m is not head]
    whole = 2 * sum(parameter.numel() for parameter in base.parameters())
    a_weight, a_row = BYTES[quantization]
    return round(whole + sum((a_weight - 2) * m * n + a_row * m for m, n in linear))


def needs(
    config: PreTrainedConfig,
    rank: int | None,
    step: Step,
    targets: tuple[str, ...] = MLP,
    quantization: str | None = None,
) -> Needs:
    """What a base in bfloat16 or in few bits needs, with experts on its MLP matrices or others.

    A token keeps 2·h bytes in a layer with gradient checkpointing, and 2·(4·i + 6·h) in a layer without, which is then
    one at a time: 8 % more than was measured on the built-in base (hidden size h, intermediate size i). Eight-bit
    layers keep their inputs as well, 2·(3·h + i). A quantised matrix is made dense while it multiplies, one at a time.
    """
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    shapes = [m.weight.shape for name, m in base.named_modules() if isinstance(m, nn.Linear) and name.endswith(targets)]
    ranks = [min(*shape, rank or min(shape)) for shape in shapes]
    h, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    whole = 2 * (4 * i + 6 * h) + (2 * (3 * h + i) if quantization == "int8" else 0)
    dense = 0 if quantization is None else 2 * h * i
    kept = 2 * h * layers + whole if step.checkpointing else whole * layers
    width = getattr(config, "head_dim", None) or h // config.num_attention_heads
    return Needs(
        base=base_bytes(base, quantization),
        factors=sum(2 * r * sum(shape) + 4 * r for r, shape in zip(ranks, shapes, strict=True)),
        backward=step.tokens * step.micro_batch * kept + LOGITS + dense,
        cache=2 * layers * config.num_key_value_heads * width * 2 * step.tokens,
    )


SETTINGS = {12: (2, True), 16: (4, True), 24: (4, True), 80: (8, False)}
"""Card → sequences in a micro-batch, and whether there is gradient checkpointing."""
QUANTIZATIONS: dict[int, tuple[str | None, ...]] = {12: ("nf4",), 16: ("nf4", "int8"), 24: (None,), 80: (None,)}
TOKENS = {"gsm8k": 300 + 512, "mbpp": 350 + 512, "arc_easy": 250 + 256}
"""The longest prompts of the training split, and the new tokens of the recipe."""


@dataclass(frozen=True)
class Speed:
    """A card's speed, by its vendor: bfloat16 products per second, and bytes read per second."""

    name: str
    flops: float
    bandwidth: float


SPEEDS = {24: Speed("RTX 4090", 165e12, 1.008e12), 80: Speed("A100 SXM", 312e12, 2.039e12)}
REACHED = 0.4
"""The share of either that training and decoding in PyTorch commonly reach."""
SEQUENCES, NEW_TOKENS, STEPS = 128, 512, 100
VALIDATIONS, VALIDATION_SIZE, TEST_SIZE = 11, 256, 1319
"""The sizes of the recipes for GSM8K. The test problems are answered twice, by the base and by the expert."""

HELD_OUT_AT_ONCE = 64
"""The batch size of validation and test (`experts/training/evaluation.py`)."""


def answering(own: Needs, card: int, count: int, most: int = SEQUENCES) -> float:
    """Seconds for `count` answers, all of the maximum length, at most `most` at once.

    Every token of as many answers as fit at once reads the base, and their cache, which is half full on average.
    """
    at_once = min(own.sequences(card * 1e9), count, most)
    bytes_read = own.stays + at_once * own.cache / 2
    return count / at_once * NEW_TOKENS * bytes_read / (REACHED * SPEEDS[card].bandwidth)


def gradient(own: Needs, step: Step, card: int, count: int) -> float:
    """Seconds for `count` sequences: forwards, backwards to the inputs, and forwards again with checkpointing."""
    passes = 3 if step.checkpointing else 2
    return count * passes * own.base * step.tokens / (REACHED * SPEEDS[card].flops)


def print_hours(sizes: Iterable[int], processes: int) -> None:
    print("| | card | seconds: sampling | gradient | validation | hours |\n|---|---|---|---|---|---|")
    for card in sizes:
        step = Step(TOKENS["gsm8k"], *SETTINGS[card])
        for name, config in BASES.items():
            own, share = needs(config, 64, step), SEQUENCES // processes
            parts = answering(own, card, share), gradient(own, step, card, share)
            validation, test = (
                answering(own, card, -(-size // processes), HELD_OUT_AT_ONCE) for size in (VALIDATION_SIZE, TEST_SIZE)
            )
            hours = (STEPS * sum(parts) + VALIDATIONS * validation + 2 * test) / 3600
            told = " | ".join(f"{part:.0f}" for part in (*parts, validation))
            print(f"| {name}, gsm8k | {processes} × {SPEEDS[card].name}, {card} GB | {told} | {hours:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=int, choices=[*SETTINGS], help="GB of memory; all sizes by default")
    parser.add_argument("--hours", action="store_true", help="the time, on a card of 24 GB and one of 80 GB")
    parser.add_argument(
        "--processes", type=int, default=1, help="for --hours: the number of cards, each with a base of its own"
    )
    options = parser.parse_args()
    card = options.card
    if options.hours:
        print_hours([card] if card in SPEEDS else SPEEDS, options.processes)
        return
    columns = ("base", "factors", "stay", "backward", "peak", "sequences sampled at once", "their cache", "peak")
    print(f"| | card | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for size in [card] if card else SETTINGS:
        micro_batch, checkpointing = SETTINGS[size]
        for (name, config), quantization in product(BASES.items(), QUANTIZATIONS[size]):
            for domain, tokens in TOKENS.items():
                own = needs(config, 64, Step(tokens, micro_batch, checkpointing), quantization=quantization)
                rows = min(own.sequences(size * 1e9), 128)
                sizes = (own.base, own.factors, own.stays, own.backward, own.stays + own.backward)
                told = [f"{each / 1e9:.1f}" for each in sizes]
                told += [str(rows), f"{rows * own.cache / 1e9:.1f}", f"{(own.stays + rows * own.cache) / 1e9:.1f}"]
                print(f"| {name}, {domain}, {quantization or 'bfloat16'} | {size} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
