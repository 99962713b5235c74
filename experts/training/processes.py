"""Processes that train together, and sharding a base that is too large for one of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from experts.outside.errors import UserError
from experts.svf import SVFLinear


def processes(patience: timedelta | None = None) -> PartialState:
    """This process, among those that `torchrun` or `accelerate launch` started.

    Without an accelerator they talk over gloo. accelerate must be told so at its first call; otherwise each process
    takes itself for the only one.

    Args:
        patience: how long they wait for each other, if this is the first call; None is PyTorch's default.
    """
    waits = {} if patience is None else {"timeout": patience}
    return PartialState(cpu=not torch.accelerator.is_available(), **waits)


def shard(model: PeftModel) -> None:
    """Shards the base's parameters over all processes, and moves each shard to its process's device.

    Every process keeps a shard of the base, and the whole expert.

    A block of the base is gathered while it runs, forwards and backwards, and freed afterwards (FSDP 2). Trained
    parameters are few: they stay whole in every process, as under data parallelism, which sums their gradients. So do
    buffers, including SVF's factors, so these are best limited in rank. Every process must make equally many forward
    passes.

    Raises:
        UserError: if there is only one process, or the base is quantised.
    """
    state = processes()
    if state.num_processes == 1:
        raise UserError("shard_base: there is only one process, so nothing can be sharded; start several with torchrun")
    if isinstance(model, FSDPModule):
        return
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UserError(
            "shard_base: a 4-bit or 8-bit base cannot be sharded; leave shard_base out to load one in every process"
        )
    base: Any = model.get_base_model()
    trained = {p for p in model.parameters() if p.requires_grad}
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    blocks = set(base._no_split_modules or ())
    for module in [*(m for m in base.modules() if type(m).__name__ in blocks), base]:
        # The rest too: by default FSDP would keep it gathered until one process saves and frees its own.
        fully_shard(module, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
        # FSDP keeps the tensors it gathers into; made under inference mode they would be useless for training.
        module.unshard()
        module.reshard()
    for layer in model.modules():
        if isinstance(layer, SVFLinear):
            layer.keeps_merged = False
    model.to(state.device)  # what is not sharded
    untouched = [name for name, p in model.named_parameters() if p not in trained]
    untouched += [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, untouched)
