"""A REINFORCE step whose prompts are read once for all their samples, against one that repeats them.

python benchmarks/shared_prompts.py [--rounds 3] [--prompts 8] [--samples 4] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from peft import get_peft_model
from sidebyside import side_by_side
from torch import Tensor
from transformers import GenerationConfig

from experts.svf import SVFConfig
from experts.training.shared_prompts import completion_logits, sample
from selfadapt import load_base

PROMPT, NEW = 60, 16  # tokens, about as in the word problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    base, tokenizer = load_base(dtype=options.dtype)
    model = get_peft_model(base, SVFConfig(target_modules=r".*\.mlp\.(gate|up|down)_proj", rank=64)).train()
    prompts = torch.randint(10, 40_000, (options.prompts, PROMPT))
    repeated = prompts.repeat_interleave(options.samples, 0)
    config = GenerationConfig(do_sample=True, max_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id)
    base.generation_config.eos_token_id = None  # equally long answers

    def train(completions: Tensor, share: bool) -> None:
        ids = torch.cat([repeated, completions], 1)
        [(_, logits)] = completion_logits(model, ids, torch.ones_like(ids), NEW, share=share)  # all rows in their order
        logits.float().log_softmax(-1).gather(-1, completions[..., None]).sum().backward()
        model.zero_grad()

    def plain_sample() -> Tensor:
        with torch.no_grad():
            rows = model.generate(
                input_ids=repeated, attention_mask=torch.ones_like(repeated), generation_config=config
            )
        return rows[:, PROMPT:]

    def shared_sample() -> Tensor:
        return torch.tensor(sample(model, prompts.tolist(), options.samples, config))

    def step(draw: Callable[[], Tensor], share: bool) -> Callable[[], None]:
        return lambda: train(draw(), share)

    side_by_side(
        f"{options.prompts} prompts of {PROMPT} tokens, {options.samples} samples of {NEW} each, {options.dtype}",
        {
            "a step, prompts repeated": step(plain_sample, share=False),
            "a step, prompts shared": step(shared_sample, share=True),
            "its sampling, prompts repeated": plain_sample,
            "its sampling, prompts shared": shared_sample,
        },
        against="a step, prompts repeated",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
