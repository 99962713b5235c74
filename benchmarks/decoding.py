"""Greedy answers of different lengths, decoded row by row, against transformers' `generate` in batches.

python benchmarks/decoding.py [--model smollm2-135m] [--dtype float32] [--prompts 48] [--batch-size 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sidebyside import side_by_side

from experts.domains.word_problems import WordProblems
from experts.engine import NativeEngine
from selfadapt import load_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    domain = WordProblems(name="", description="", problems="sums", instruction="Reason step by step.")
    prompts = domain.load("test").select(range(options.prompts))["prompt"][:]
    model, tokenizer = load_base(options.model, dtype=options.dtype)
    engine = NativeEngine(model, tokenizer)

    def row_by_row() -> list[str]:
        return engine.generate(prompts, max_new_tokens=options.new_tokens, batch_size=options.batch_size)

    @torch.inference_mode()
    def by_generate() -> None:
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in prompts]
        texts.sort(key=len)
        for start in range(0, len(texts), options.batch_size):
            own = texts[start : start + options.batch_size]
            batch: Any = tokenizer(
                own, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            )
            model.generate(**batch.to(model.device), max_new_tokens=options.new_tokens, do_sample=False)

    lengths = sorted(len(tokenizer(answer)["input_ids"]) for answer in row_by_row())
    print(f"answers of {lengths[0]} to {lengths[-1]} tokens, {lengths[len(lengths) // 2]} the median")
    side_by_side(
        f"{options.prompts} prompts, {options.batch_size} at once, at most {options.new_tokens} tokens",
        {"generate, in batches": by_generate, "row by row": row_by_row},
        against="generate, in batches",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
