"""The bytes of each component of training an expert: measured on the built-in base, and by arithmetic for any shapes.

python benchmarks/memory.py [--rank 64] [--rows 4] [--tokens 256] [--quantization nf4]

The arithmetic is checked against the measurement, component by component, and then done for Llama-3-8B.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fits import base_bytes
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from experts.svf import SVFConfig, SVFLinear
from selfadapt import load_base
from selfadapt.base_models import BaseOptions

LLAMA_3_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def by_arithmetic(base: nn.Module, rank: int | None, quantization: str | None = None) -> dict[str, int]:
    """The bytes for all linear layers but the head, in bfloat16 or few bits; works without values (meta device)."""
    head = base.get_output_embeddings()
    shapes = [m.weight.shape for m in base.modules() if isinstance(m, nn.Linear) and m is not head]
    ranks = [min(*shape, rank or min(shape)) for shape in shapes]
    z = 4 * sum(ranks)
    return {
        "base": base_bytes(base, quantization),
        "factors": sum(2 * r * sum(shape) + 4 * r for r, shape in zip(ranks, shapes, strict=True)),
        "z": z,
        "gradient": z,
        "AdamW": 2 * z,
    }


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[list[int]]:
    """The bytes that autograd keeps within the block, each storage counted once, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    total: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(storages.values()))


def bytes_of(base: nn.Module) -> int:
    """The bytes of all parameters, and of the scales beside quantised ones."""
    total = size(*base.parameters())
    for module in base.modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            state = weight.quant_state
            total += size(state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        elif type(weight).__name__ == "Int8Params":
            total += size(weight.SCB)
    return total


def measured(rank: int | None, ids: Tensor, quantization: str | None = None) -> dict[str, int]:
    options: BaseOptions = {} if quantization is None else {"quantization": quantization}
    base, _ = load_base(dtype="bfloat16", **options)
    its_bytes = bytes_of(base)
    model = get_peft_model(base, SVFConfig(rank=rank)).train()
    zs = [p for p in model.parameters() if p.requires_grad]
    layers = [module for module in model.modules() if isinstance(module, SVFLinear)]
    optimizer = torch.optim.AdamW(zs)
    activations = {}
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        with saved_for_backward(model) as total:
            hidden = model.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
        activations[checkpointed] = total[0]
        hidden.float().sum().backward()
    optimizer.step()
    state = [value for p in zs for value in optimizer.state[p].values() if value.ndim]
    return {
        "base": its_bytes,
        "factors": sum(size(layer.svf_u, layer.svf_s, layer.svf_vt) for layer in layers),
        "z": size(*zs),
        "gradient": size(*(p.grad for p in zs)),
        "AdamW": size(*state),
        "kept for backward, per token": activations[False] // ids.numel(),
        "the same with gradient checkpointing": activations[True] // ids.numel(),
        "dense gradients (for comparison)": sum(2 * layer.out_features * layer.in_features for layer in layers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--quantization", choices=["nf4", "int8"])
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(10, 40_000, (options.rows, options.tokens))
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(LLAMA_3_8B)
    small, _ = load_base()
    few_bits = options.quantization
    dtype = few_bits or "bfloat16"
    for rank in (options.rank,) if few_bits else (options.rank, None):
        found, wanted = measured(rank, ids, few_bits), by_arithmetic(small, rank, few_bits)
        print(f"\n{f'built-in base, {dtype}, rank ' + str(rank or 'full'):44}{'measured':>14}{'arithmetic':>14}")
        for name, value in found.items():
            print(f"{name:44}{value:14,}{f'{wanted[name]:14,}' if name in wanted else '':>14}")
        # In few bits each layer also has a table of its values, of a kilobyte.
        assert all(abs(found[name] - value) <= (0.05 * value if few_bits else 0) for name, value in wanted.items())
        print(f"\n{f'Llama-3-8B, {dtype}, rank ' + str(rank or 'full'):44}{'':14}{'arithmetic':>14}")
        for name, value in by_arithmetic(large, rank, few_bits).items():
            print(f"{name:44}{'':14}{value:14,}")


if __name__ == "__main__":
    main()
