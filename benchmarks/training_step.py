"""A training step (forward and backward) of SVF against a PEFT LoRA and against rebuilding W in autograd.

python benchmarks/training_step.py [--rounds 7] [--rows 16] [--tokens 64] [--quantization nf4]

On a quantised base it times a LoRA, which is then QLoRA, and SVF of rank 64.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from typing import Unpack

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, get_peft_model
from sidebyside import side_by_side
from torch import Tensor, nn

from experts.svf import SVFConfig, SVFLinear
from selfadapt import load_base
from selfadapt.base_models import BaseOptions


class RebuiltLinear(nn.Module):
    """What a user would write first: W' = U diag(s·z) Vᵀ in autograd, in every forward."""

    def __init__(self, layer: SVFLinear) -> None:
        super().__init__()
        self.u, self.s, self.vt, self.bias = layer.svf_u, layer.svf_s, layer.svf_vt, layer.base_layer.bias
        self.z = nn.Parameter(torch.ones_like(self.s))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.u @ ((self.s * self.z)[:, None] * self.vt), self.bias)


def adapted(config: PeftConfig, **options: Unpack[BaseOptions]) -> nn.Module:
    return get_peft_model(load_base(**options)[0], config).train()


def rebuilt() -> nn.Module:
    model = adapted(SVFConfig())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, SVFLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, RebuiltLinear(module))
    return model


def step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    def run() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--quantization")
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(10, 40_000, (options.rows, options.tokens))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    what = f"forward + backward, {options.rows} × {options.tokens} tokens, all linear layers"
    if options.quantization is not None:
        few_bits: BaseOptions = {"quantization": options.quantization}
        quantised = {"QLoRA r=16": adapted(lora, **few_bits), "SVF rank 64": adapted(SVFConfig(rank=64), **few_bits)}
        runs = {name: step(model, ids) for name, model in quantised.items()}
        side_by_side(f"{what}, {options.quantization}", runs, against="QLoRA r=16", rounds=options.rounds)
        return
    full = adapted(SVFConfig())
    alternatives = {
        "LoRA r=16": adapted(lora),
        "SVF full rank": full,
        "SVF rank 64": adapted(SVFConfig(rank=64)),
        "rebuilt in autograd": rebuilt(),
    }
    layers = [module for module in full.modules() if isinstance(module, SVFLinear)]

    def remerge() -> None:
        """What one optimiser step costs on top: every merged weight is built anew."""
        for layer in layers:
            layer.invalidate()
            with torch.no_grad():
                layer._merged(["default"])

    runs = {name: step(model, ids) for name, model in alternatives.items()}
    side_by_side(
        what,
        {**runs, "(merging all weights anew)": remerge},
        against="LoRA r=16",
        rounds=options.rounds,
    )
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
